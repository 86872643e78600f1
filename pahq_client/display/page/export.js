// Saves what is visible, as SVG and as PNG, in the colours of the page.

import { size, title } from "./data.js";
import { legendOf } from "./drawing.js";

const SPACE = "http://www.w3.org/2000/svg";
const LEGEND_HEIGHT = 34;
const MARGIN = 20;
// A PNG is three times as large as the picture, for printing, unless a browser could not make it.
const SCALE = 3;
const MOST_PIXELS = 60e6;
const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "opacity"];
const TEXT_STYLES = ["font-size", "font-family", "text-anchor"];
const DROPPED = ["class", "role", "tabindex", "data-index", "data-kind", "aria-label", "aria-pressed", "style"];

/** The drawing as a file of its own: {text, width, height}. Styles become attributes, what is hidden goes. */
export function asSvg(root, state, view) {
  const legend = legendOf(state, view);
  const width = Math.max(size.width, legend.width + 2 * MARGIN);
  const height = size.height + (legend.items.length ? LEGEND_HEIGHT : 0);
  const svg = document.createElementNS(SPACE, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  const name = document.createElementNS(SPACE, "title");
  name.textContent = title;
  const ground = document.createElementNS(SPACE, "rect");
  ground.setAttribute("width", width);
  ground.setAttribute("height", height);
  ground.setAttribute("fill", getComputedStyle(document.documentElement).getPropertyValue("--ground").trim());
  svg.append(name, ground);
  for (const part of root.querySelector(".viewport").children) svg.append(still(part));
  // Its styles can be computed only while it is in the page.
  document.getElementById("legend").append(legend.svg);
  const group = document.createElementNS(SPACE, "g");
  group.setAttribute("transform", `translate(${MARGIN},${size.height + 4})`);
  for (const part of legend.svg.children) group.append(still(part));
  legend.svg.remove();
  svg.append(group);
  return { text: new XMLSerializer().serializeToString(svg), width, height };
}

/** A copy that looks the same without a style sheet; null for what is not displayed. */
function still(element) {
  const style = getComputedStyle(element);
  if (style.display === "none") return "";
  const copy = element.cloneNode(false);
  for (const name of DROPPED) copy.removeAttribute(name);
  const names = element.tagName === "text" ? [...STYLES, ...TEXT_STYLES] : STYLES;
  if (element.tagName !== "g") for (const name of names) copy.setAttribute(name, style.getPropertyValue(name));
  else if (style.opacity !== "1") copy.setAttribute("opacity", style.opacity);
  for (const child of element.childNodes) copy.append(child instanceof Element ? still(child) : child.cloneNode());
  return copy;
}

export function saveSvg(drawn, name) {
  download(new Blob([drawn.text], { type: "image/svg+xml" }), `${name}.svg`);
}

export async function savePng(drawn, name) {
  const address = URL.createObjectURL(new Blob([drawn.text], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const scale = Math.min(SCALE, Math.sqrt(MOST_PIXELS / (drawn.width * drawn.height)));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(drawn.width * scale);
    canvas.height = Math.round(drawn.height * scale);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    download(blob, `${name}.png`);
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** A name for a file: letters and digits of the title, and the number of edges. */
export function fileName(n) {
  const words = title.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${words || "circuit"}-${n}-edges`;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Joins the parts: keeps the state, and shows it again whenever it changes.

import { mostEdges } from "./data.js";
import { makeDrawing } from "./drawing.js";
import { asSvg, fileName, savePng, saveSvg } from "./export.js";
import { byId, make, makePanel } from "./panel.js";
import { colours, fromFragment, toFragment } from "./state.js";
import { look, search } from "./view.js";

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

let state = fromFragment(location.hash);
let view = look(state);

const act = {
  set(changes) {
    Object.assign(state, changes);
    show();
  },
  pin(name) {
    act.set({ pin: name === state.pin ? "" : name });
  },
  pinFound() {
    const [first] = search(state.find, view).nodes;
    if (first) act.set({ pin: first.name });
  },
  sort(key) {
    act.set({ sort: key, up: state.sort === key ? !state.up : key === "name" });
  },
  zoomed(zoom) {
    state.zoom = zoom;
    remember();
  },
};

const drawing = makeDrawing(act);
const updatePanel = makePanel(act);

let waits = false;
function show() {
  if (waits) return; // many changes, as of a slider that is drawn along, are shown at once
  waits = true;
  requestAnimationFrame(() => {
    waits = false;
    showNow();
  });
}

function showNow() {
  view = look(state);
  drawing.update(state, view);
  updatePanel(state, view);
  document.documentElement.dataset.theme = state.theme;
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  remember();
}

// The address keeps the state. Browsers limit how often it may change.
let written = null;
let timer = 0;
function remember() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const fragment = toFragment(state);
    if (fragment === written) return;
    written = fragment;
    try {
      history.replaceState(null, "", fragment ? `#${fragment}` : `${location.pathname}${location.search}`);
    } catch {
      // Inside of a frame a page may have no address of its own.
    }
  }, 150);
}

addEventListener("hashchange", () => {
  if (location.hash === "#nodes-heading") return;
  state = fromFragment(location.hash);
  showNow();
  drawing.place(state.zoom);
});

const isDark = () => state.theme === "dark" || (state.theme === "auto" && systemIsDark.matches);
systemIsDark.addEventListener("change", showNow);

const turn = (set, key) => {
  const turned = new Set(set);
  if (!turned.delete(key)) turned.add(key);
  return turned;
};
const step = (by) => act.set({ n: Math.min(Math.max(state.n + by, 0), mostEdges) });
const fit = () => {
  drawing.fit();
  act.zoomed(null);
};
const turnTheme = () => act.set({ theme: isDark() ? "light" : "dark" });
const svgNow = () => saveSvg(asSvg(drawing.root, state, view), fileName(view.counts.shown));
const pngNow = () => savePng(asSvg(drawing.root, state, view), fileName(view.counts.shown));
const openHelp = () => byId("help").showModal();

for (const [id, action] of Object.entries({
  "zoom-in": () => drawing.zoomBy(1.3),
  "zoom-out": () => drawing.zoomBy(1 / 1.3),
  "zoom-fit": fit,
  "save-svg": svgNow,
  "save-png": pngNow,
  theme: turnTheme,
  "help-open": openHelp,
})) {
  byId(id).addEventListener("click", action);
}

const turnKind = (kind) => act.set({ kinds: turn(state.kinds, kind) });
const after = (list, item) => list[(list.indexOf(item) + 1) % list.length];

// What a key does.
const KEYS = {
  "/": () => byId("find").focus(),
  "[": () => step(-1),
  "]": () => step(1),
  "{": () => step(-10),
  "}": () => step(10),
  q: () => turnKind("q"),
  k: () => turnKind("k"),
  v: () => turnKind("v"),
  m: () => turnKind("mlp"),
  l: () => turnKind("logits"),
  p: () => act.set({ prune: !state.prune }),
  c: () => act.set({ colour: after(colours, state.colour) }),
  "+": () => drawing.zoomBy(1.3),
  "=": () => drawing.zoomBy(1.3),
  "-": () => drawing.zoomBy(1 / 1.3),
  0: fit,
  s: svgNow,
  g: pngNow,
  t: turnTheme,
  n: () => byId("nodes").querySelector("tbody button")?.focus(),
  "?": openHelp,
  Escape: () => act.set({ pin: "", find: "" }),
};
// What the help says of them; those of the picture are handled where nodes are drawn.
const HELP = [
  ["[ ]", "one edge less, one more"],
  ["{ }", "ten edges less, ten more"],
  ["q k v m l", "hide or show edges into queries, keys, values, MLPs, logits"],
  ["p", "hide or show edges on no path from input to logits"],
  ["c", "colour by something else"],
  ["/", "find a node or an edge; Enter pins the first one"],
  ["Esc", "unpin, and find nothing"],
  ["+ - 0", "zoom in, zoom out, fit to the window"],
  ["Tab", "go on: picture, controls, tables"],
  ["\u2190 \u2191 \u2192 \u2193", "in the picture: go to the next node that way"],
  ["Enter", "in the picture: pin the node, or unpin it"],
  ["n", "go to the table of nodes"],
  ["s g", "save as SVG, as PNG"],
  ["t", "light or dark"],
  ["?", "this help"],
];
for (const [keys, words] of HELP) {
  const shown = keys.split(" ").flatMap((key) => [make("kbd", {}, key), " "]);
  byId("keys").tBodies[0].append(make("tr", {}, make("td", {}, ...shown), make("td", {}, words)));
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const isText = event.target instanceof HTMLInputElement && ["search", "number"].includes(event.target.type);
  if (isText && event.key !== "Escape") return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  if (isText) event.target.blur();
  KEYS[event.key]();
});

showNow();
drawing.place(state.zoom);
// For whoever measures: when the first picture was complete.
requestAnimationFrame(() => performance.mark("pahq-drawn"));

// The controls and tables beside the drawing.

import { comparing, count, edges, figure, kinds, members, mostEdges, nodeByName, nodes, plural, sides, title } from "./data.js";
import { colours } from "./state.js";
import { kin, search, strongest } from "./view.js";

const ROWS = 60; // of the table of nodes, before the reader asks for all
const PINNED_ROWS = 8;
const COLOUR_WORDS = { kind: "q/k/v and sign", sign: "sign only", member: "membership" };
const COLUMNS = [
  { key: "name", text: "Node", words: "node" },
  { key: "edges", text: "Edges", words: "number of edges" },
  { key: "into", text: "In", words: "sum of incoming scores" },
  { key: "out", text: "Out", words: "sum of outgoing scores" },
  { key: "total", text: "|Total|", words: "sum of all scores, without signs" },
];

export const byId = (id) => document.getElementById(id);

/** Makes an element; text is only ever set as text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Makes the panel. `act.set(changes)` changes the state, `act.pin(name)` pins. Returns `update(state, view)`. */
export function makePanel(act) {
  let allRows = false;
  heading();
  about();
  const slider = byId("count");
  const number = byId("count-number");
  for (const input of [slider, number]) {
    input.max = mostEdges;
    input.addEventListener("input", () => {
      if (input.value === "") return;
      act.set({ n: Math.min(Math.max(Math.round(Number(input.value)), 0), mostEdges) });
    });
  }
  number.addEventListener("change", () => (number.value = slider.value)); // what was typed may be out of range
  const profile = makeProfile();
  const kindBoxes = boxes("kinds", kinds, (chosen) => act.set({ kinds: chosen }));
  byId("membership").hidden = !comparing;
  const memberBoxes = comparing ? boxes("members", members, (chosen) => act.set({ members: chosen })) : null;
  const radios = colours.map((key) => {
    const input = make("input", { type: "radio", name: "colour", value: key });
    input.addEventListener("change", () => act.set({ colour: key }));
    byId("colours").append(make("label", {}, input, COLOUR_WORDS[key]));
    return input;
  });
  byId("prune").addEventListener("change", (event) => act.set({ prune: event.target.checked }));
  const find = byId("find");
  find.addEventListener("input", () => act.set({ find: find.value, pin: "" }));
  find.addEventListener("keydown", (event) => event.key === "Enter" && act.pinFound());
  byId("unpin").addEventListener("click", () => act.pin(""));
  const headers = COLUMNS.map((column) => {
    const button = make("button", { type: "button", title: `Sort by ${column.words}` }, column.text);
    button.addEventListener("click", () => act.sort(column.key));
    const header = make("th", { scope: "col" }, button);
    byId("nodes").tHead.rows[0].append(header);
    return header;
  });
  byId("more-nodes").addEventListener("click", () => {
    allRows = true;
    act.set({});
  });
  byId("nodes").tBodies[0].addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) act.pin(button.textContent);
  });

  function update(state, view) {
    slider.value = String(state.n);
    slider.setAttribute("aria-valuetext", plural(state.n, "edge"));
    if (document.activeElement !== number) number.value = String(state.n);
    profile(state.n);
    kindBoxes(state.kinds);
    memberBoxes?.(state.members, view.counts);
    radios.forEach((radio) => (radio.checked = radio.value === state.colour));
    byId("prune").checked = state.prune;
    if (find.value !== state.find) find.value = state.find;
    byId("found").textContent = findings(state, view);
    byId("readout").textContent = readout(view);
    byId("figures").textContent = figures(state);
    byId("nothing").hidden = view.counts.shown > 0;
    pinned(state, view, act);
    rows(state, view);
  }

  function rows(state, view) {
    headers.forEach((header, index) => {
      if (COLUMNS[index].key === state.sort) header.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    });
    const shown = view.totals.filter((sums) => view.nodeShown[sums.node.index]);
    const sign = state.up ? 1 : -1;
    shown.sort((a, b) => sign * (a[state.sort] - b[state.sort]) || a.name - b.name);
    const listed = allRows ? shown : shown.slice(0, ROWS);
    byId("nodes").tBodies[0].replaceChildren(...listed.map((sums) => row(sums, state)));
    byId("more-nodes").hidden = listed.length === shown.length;
    byId("more-nodes").textContent = `Show all ${count(shown.length)} nodes`;
  }

  return update;
}

function row(sums, state) {
  const button = make("button", { type: "button" }, sums.node.name);
  const cells = [sums.edges, sums.into, sums.out, sums.total].map((value) => make("td", {}, figure(value)));
  return make("tr", state.pin === sums.node.name ? { class: "pinned" } : {}, make("td", {}, button), ...cells);
}

function heading() {
  byId("title").textContent = comparing ? `${sides[0].name} and ${sides[1].name}` : title;
  byId("subtitle").textContent = sides.map(sideline).join(" \u2014 ");
  const cut = sides.filter((side) => side.drawn < side.edges);
  byId("order").textContent = order();
  byId("cut").hidden = !cut.length;
  byId("cut").textContent = cut
    .map((side) => `${comparing ? `${side.name}: the` : "The"} largest ${count(side.drawn)} of ${count(side.edges)} edges are in this picture.`)
    .join(" ");
}

/** What the slider takes first. */
function order() {
  const [first] = sides;
  if (sides.every((side) => side.order === first.order)) return first.order;
  return sides.map((side) => `${side.name}: ${side.order}`).join("; ");
}

function sideline(side) {
  const point = side.points.find(([n]) => n === side.edges && n > 0);
  const parts = side.edges === side.graph_edges ? [plural(side.edges, "edge")] : [`${count(side.edges)} of ${plural(side.graph_edges, "edge")}`];
  if (point && side.edges < side.graph_edges) parts.push(...measured(side, point));
  if (side.partial) parts.push("partial: its job did not come to its end");
  const method = side.method ? `${side.method}: ` : "";
  return `${comparing ? `${side.name}: ` : method}${parts.join(", ")}`;
}

function measured(side, [, value, faithfulness]) {
  const parts = [`${side.measures} ${figure(value)}`];
  if (faithfulness !== null) parts.push(`faithfulness ${figure(100 * faithfulness)} %`);
  return parts;
}

function about() {
  for (const side of sides) {
    if (comparing) byId("about").append(make("h3", {}, side.name));
    for (const warning of side.warnings) byId("about").append(make("p", {}, make("strong", {}, "Warning: "), warning));
    const facts = side.facts.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]);
    byId("about").append(make("dl", {}, ...facts));
    if (!side.prompts.length) continue;
    const prompts = side.prompts.map(([clean, corrupted]) =>
      make("li", {}, clean, ...(corrupted ? [make("div", { class: "against" }, corrupted)] : [])),
    );
    byId("about").append(make("h3", {}, "Prompts, each with its corrupted one"), make("ul", {}, ...prompts));
  }
}

/** Makes checkboxes. Returns a function that shows which are checked, and counts beside them. */
function boxes(id, items, changed) {
  const made = items.map(({ key, text }) => {
    const input = make("input", { type: "checkbox", value: key });
    const words = make("span", {}, text);
    byId(id).append(make("label", {}, input, make("span", { class: `swatch ${key}` }), words));
    input.addEventListener("change", () => {
      changed(new Set(made.filter((each) => each.input.checked).map((each) => each.key)));
    });
    return { key, text, input, words };
  });
  return (chosen, counts = null) => {
    for (const { key, text, input, words } of made) {
      input.checked = chosen.has(key);
      if (counts) words.textContent = `${text} (${count(counts[key])})`;
    }
  };
}

/** A curve of the sizes of scores by rank, with marks where the metric is known. Returns a function that fills it up to a rank. */
function makeProfile() {
  const space = "http://www.w3.org/2000/svg";
  const make = (name, attributes) => {
    const element = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const svg = make("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none" });
  const clip = make("clipPath", { id: "taken" });
  const window_ = make("rect", { x: 0, y: 0, width: 0, height: 30 });
  clip.append(window_);
  svg.append(clip);
  sides.forEach((_, side) => {
    const sizes = [];
    for (const edge of edges) if (edge.ranks[side] !== null) sizes[edge.ranks[side]] = Math.abs(edge.scores[side] ?? 0);
    const most = Math.max(...sizes.slice(0, 1), 0) || 1;
    const steps = Math.max(1, Math.floor(sizes.length / 200));
    const points = [];
    for (let rank = 0; rank < sizes.length; rank += steps) {
      const y = (30 - 28 * Math.sqrt(sizes[rank] / most)).toFixed(2);
      points.push(`${((100 * rank) / mostEdges).toFixed(2)},${y}`, `${((100 * Math.min(rank + steps, sizes.length)) / mostEdges).toFixed(2)},${y}`);
    }
    if (!points.length) return;
    const end = (100 * sizes.length) / mostEdges;
    const area = `M0,30L${points.join("L")}L${end},30Z`;
    if (side === 1) {
      svg.append(make("path", { d: `M${points.join("L")}`, class: "second", "vector-effect": "non-scaling-stroke" }));
    } else {
      svg.append(make("path", { d: area }), make("path", { d: area, class: "taken", "clip-path": "url(#taken)" }));
    }
  });
  for (const [n] of sides.flatMap((side) => side.points)) {
    if (n <= mostEdges && mostEdges) svg.append(make("path", { d: `M${(100 * n) / mostEdges},30v-7`, class: "known", "vector-effect": "non-scaling-stroke" }));
  }
  byId("profile").append(svg);
  return (n) => window_.setAttribute("width", mostEdges ? (100 * n) / mostEdges : 0);
}

function readout(view) {
  const { counts } = view;
  const hidden = counts.members - counts.shown;
  const parts = [`${plural(counts.shown, "edge")}, ${plural(counts.nodes, "node")}`];
  if (counts.members) parts.push(`${count(counts.onPath)} of ${count(counts.members)} on a path`);
  if (hidden) parts.push(`${count(hidden)} hidden`);
  return parts.join("; ");
}

/** What the metric is at this number of edges, as far as it was measured, and how small the scores are here. */
function figures(state) {
  return sides
    .map((side, index) => {
      const n = Math.min(state.n, side.drawn);
      const size = n === side.drawn && side.drawn === side.edges ? side.edges : n;
      const point = side.points.find(([known]) => known === size);
      const known = around(side.points, n).map(([at, value]) => `${figure(value)} with ${at === side.graph_edges ? "all" : count(at)}`);
      const metric = point
        ? measured(side, point).join(", ")
        : `${side.measures} not measured with ${count(n)} edges${known.length ? ` (${known.join(", ")})` : ""}`;
      const last = edges.find((edge) => edge.ranks[index] === n - 1);
      const least = last && last.scores[index] !== null ? `\n|score| \u2265 ${figure(Math.abs(last.scores[index]))}` : "";
      return `${comparing ? `${side.name}: ` : ""}${metric}${least}`;
    })
    .join("\n");
}

/** The measured points next below and above a number of edges. */
function around(points, n) {
  const below = points.filter(([at]) => at < n).slice(-1);
  return [...below, ...points.filter(([at]) => at > n).slice(0, 1)];
}

function findings(state, view) {
  if (!state.find.trim()) return "";
  const found = search(state.find, view);
  if (!found.nodes.length) return "nothing of this name is visible";
  return `${plural(found.nodes.length, "node")}, ${plural(found.edges.length, "edge")}; Enter pins ${found.nodes[0].name}`;
}

function pinned(state, view, act) {
  const node = nodeByName.get(state.pin);
  byId("pinned").hidden = !node;
  if (!node) return;
  const { ancestors, descendants } = kin(node, view);
  byId("pinned-heading").textContent = node.name;
  byId("kin").textContent = `${plural(ancestors.length, "ancestor")}, ${plural(descendants.length, "descendant")}`;
  const table = (caption, list, other) => {
    const body = list.slice(0, PINNED_ROWS).map((edge) => {
      const ends = other(edge);
      const button = make("button", { type: "button", "aria-label": `Pin ${ends}` }, ends);
      button.addEventListener("click", () => act.pin(ends));
      const kind = ["q", "k", "v"].includes(edge.kind) ? edge.kind : "";
      const score = make("td", edge.score < 0 ? { class: "score-negative" } : {}, figure(edge.score));
      return make("tr", {}, make("td", {}, button), make("td", {}, kind), score);
    });
    const more = list.length > PINNED_ROWS ? `, the largest ${PINNED_ROWS} of ${list.length}` : "";
    return make("table", { class: "edges" }, make("caption", {}, `${caption}${more}`), make("tbody", {}, ...body));
  };
  const into = strongest(node.into, view);
  const out = strongest(node.out, view);
  byId("pinned-edges").replaceChildren(
    ...(into.length ? [table("incoming", into, (edge) => nodes[edge.source].name)] : []),
    ...(out.length ? [table("outgoing", out, (edge) => nodes[edge.ends[0]].name)] : []),
  );
}

// The state of the page, as far as it is worth keeping: the fragment of the address holds what is not as at first.

import { comparing, kinds, members, mostEdges, nodeByName, sides } from "./data.js";

const COLOURS = comparing ? ["member", "kind", "sign"] : ["kind", "sign"];
const SORTABLE = ["name", "edges", "into", "out", "total"];
const THEMES = ["auto", "light", "dark"];

const allOf = (list) => new Set(list.map((item) => item.key));

export function initialState() {
  return {
    n: Math.max(0, ...sides.map((side) => side.start)),
    kinds: allOf(kinds),
    members: allOf(members),
    prune: false,
    colour: COLOURS[0],
    pin: "",
    find: "",
    sort: "total",
    up: false, // whether the table is sorted upwards
    theme: "auto",
    zoom: null, // [x, y, scale]: the middle of the window in the picture, and how much larger than fitted
  };
}

export const colours = COLOURS;

/** The state as a fragment, without #. */
export function toFragment(state) {
  const first = initialState();
  const parts = new URLSearchParams();
  const listed = (chosen) => [...chosen].join(".");
  const put = (key, value, usual) => {
    if (value !== usual) parts.set(key, value);
  };
  put("n", String(state.n), String(first.n));
  put("kinds", listed(state.kinds), listed(first.kinds));
  put("edges", listed(state.members), listed(first.members));
  put("paths", state.prune ? "1" : "", "");
  put("colour", state.colour, first.colour);
  put("pin", state.pin, "");
  put("find", state.find, "");
  put("sort", `${state.sort}${state.up ? ".up" : ""}`, "total");
  put("theme", state.theme, "auto");
  put("zoom", state.zoom ? state.zoom.map((value) => Number(value.toFixed(3))).join(",") : "", "");
  return parts.toString();
}

/** The state of a fragment. Whatever is wrong in it is as at first: anybody may write an address. */
export function fromFragment(fragment) {
  const state = initialState();
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const oneOf = (key, allowed, usual) => (allowed.includes(parts.get(key)) ? parts.get(key) : usual);
  const some = (key, list) => {
    if (!parts.has(key)) return allOf(list);
    const chosen = parts.get(key).split(".");
    return new Set(list.map((item) => item.key).filter((item) => chosen.includes(item)));
  };
  const n = Number(parts.get("n") ?? NaN);
  if (Number.isInteger(n)) state.n = Math.min(Math.max(n, 0), mostEdges);
  state.kinds = some("kinds", kinds);
  state.members = some("edges", members);
  state.prune = parts.get("paths") === "1";
  state.colour = oneOf("colour", COLOURS, state.colour);
  state.theme = oneOf("theme", THEMES, state.theme);
  state.pin = nodeByName.has(parts.get("pin")) ? parts.get("pin") : "";
  state.find = (parts.get("find") ?? "").slice(0, 100);
  const [sort, up] = (parts.get("sort") ?? "").split(".");
  if (SORTABLE.includes(sort)) [state.sort, state.up] = [sort, up === "up"];
  const zoom = (parts.get("zoom") ?? "").split(",").map(Number);
  if (zoom.length === 3 && zoom.every(Number.isFinite) && zoom[2] > 0) state.zoom = zoom;
  return state;
}

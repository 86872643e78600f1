// Draws the circuit: bands, edges and nodes as SVG, with zoom, pan, hovering and keyboard.

import * as d3 from "d3";
import { bands, comparing, edges, figure, kinds, members, nodes, sides, size } from "./data.js";
import { focused, memberName, strongest } from "./view.js";

const NODE_HEIGHT = 22;
const PORTS = { q: -0.28, k: 0, v: 0.28 };
const RADIUS = { end: 11, mlp: 3, head: 7 };
const NEAR = 5; // how far from an edge, in pixels of the screen, the pointer still meets it
const SETTLED_MS = 250; // without a movement, until the drawing is drawn anew
const WIDE = 10_000; // how far the bands of layers go on beside the picture
// Measures texts, and whether a point is on a curve.
const pen = document.createElement("canvas").getContext("2d");
const LISTED = 3; // incoming and outgoing edges in a tooltip

/**
 * Makes the drawing.
 *
 * `act` has what it calls: `pin(name)`, `zoomed([x, y, scale] or null)`. Returns `update(state, view)`,
 * `zoomBy(factor)`, `fit()`, `place(zoom)` and `root`, the svg element.
 */
export function makeDrawing(act) {
  const stage = document.getElementById("stage");
  const svg = d3.select("#drawing");
  const viewport = svg.append("g").attr("class", "viewport");
  drawBands(viewport.append("g"));
  const edgeElements = drawEdges(viewport.append("g"));
  const nodeElements = drawNodes(viewport.append("g"));
  const tooltip = makeTooltip(stage);
  let current = null; // {state, view}
  let transform = d3.zoomIdentity;
  let rendered = transform; // the part of it that the drawing itself has
  let fitted = 1;
  let userZoom = null;

  // Zoom and pan. To draw thousands of curves anew takes longer than a frame, so that the finished drawing is moved
  // and scaled for as long as a gesture goes on, and drawn anew after it.

  const zoom = d3
    .zoom()
    .scaleExtent([0.05, 12])
    .on("zoom", (event) => {
      transform = event.transform;
      tooltip.hide();
      if (!event.sourceEvent) {
        render();
        return;
      }
      svg.style("will-change", "transform"); // a layer of its own
      const scale = transform.k / rendered.k;
      const [x, y] = [transform.x - scale * rendered.x, transform.y - scale * rendered.y];
      svg.style("transform", `translate(${x}px,${y}px) scale(${scale})`);
      clearTimeout(settling);
      settling = setTimeout(render, SETTLED_MS);
      keepZoom();
    });
  let settling = 0;
  const surface = d3.select(stage).call(zoom).on("dblclick.zoom", null);

  function render() {
    clearTimeout(settling);
    if (rendered !== transform) viewport.attr("transform", transform);
    rendered = transform;
    svg.style("transform", null).style("will-change", null);
  }

  const room = () => ({ width: stage.clientWidth || 1, height: stage.clientHeight || 1 });

  function keepZoom() {
    const { width, height } = room();
    const [x, y] = transform.invert([width / 2, height / 2]);
    userZoom = [x, y, transform.k / fitted];
    act.zoomed(userZoom);
  }

  /** Puts a point of the picture into the middle, `scale` times as large as fitted; null fits the picture. */
  function place(wanted) {
    const { width, height } = room();
    const below = Math.min(44, height / 8); // for the legend
    fitted = Math.min((width - 24) / size.width, (height - below - 12) / size.height, 1.7);
    userZoom = wanted;
    const [x, y, scale] = wanted ?? [size.width / 2, size.height / 2 + below / 2 / fitted, 1];
    const k = fitted * scale;
    surface.call(zoom.transform, d3.zoomIdentity.translate(width / 2 - x * k, height / 2 - y * k).scale(k));
  }

  function zoomBy(factor) {
    surface.call(zoom.scaleBy, factor);
    keepZoom();
  }

  new ResizeObserver(() => place(userZoom)).observe(stage);

  // Hovering. Edges are too thin to be met exactly, so the nearest point of the drawing counts.

  const outlines = edges.map(() => null);
  let under = null;

  function edgeAt([x, y]) {
    let best = null;
    for (const edge of edges) {
      if (!current.view.shown[edge.index]) continue;
      outlines[edge.index] ??= { path: new Path2D(edge.path), box: edgeElements[edge.index].getBBox() };
      const { path, box } = outlines[edge.index];
      const margin = NEAR / transform.k + edge.width;
      if (x < box.x - margin || x > box.x + box.width + margin) continue;
      if (y < box.y - margin || y > box.y + box.height + margin) continue;
      pen.lineWidth = Math.max(edge.width, (2 * NEAR) / transform.k);
      if (!pen.isPointInStroke(path, x, y)) continue;
      const isFocused = edgeElements[edge.index].classList.contains("hot");
      if (!best || (isFocused && !best.isFocused)) best = { edge, isFocused };
    }
    return best?.edge ?? null;
  }

  function mark(edge) {
    if (under === edge) return;
    if (under) edgeElements[under.index].classList.remove("under");
    under = edge;
    if (under) edgeElements[under.index].classList.add("under");
  }

  let pending = null;
  surface.on("pointermove", (event) => {
    const asked = pending === null;
    pending = event;
    if (asked) requestAnimationFrame(hover);
  });
  surface.on("pointerleave", () => {
    pending = null;
    mark(null);
    tooltip.hide();
  });

  function hover() {
    const event = pending;
    pending = null;
    if (!event || !current || event.buttons) return;
    const at = d3.pointer(event, stage);
    const node = nodeOf(event.target);
    const edge = node ? null : edgeAt(transform.invert(at));
    mark(edge);
    if (node) tooltip.show(at, nodeCard(node, current.view));
    else if (edge) tooltip.show(at, edgeCard(edge, current.view));
    else tooltip.hide();
  }

  // Pinning, with the pointer and the keyboard. One node at a time can be reached with Tab.

  const nodeOf = (target) => {
    const element = target instanceof Element ? target.closest(".node") : null;
    return element ? nodes[Number(element.dataset.index)] : null;
  };
  surface.on("click", (event) => act.pin(nodeOf(event.target)?.name ?? ""));
  surface.on("keydown", (event) => {
    const node = nodeOf(event.target);
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") {
      act.pin(node.name);
    } else {
      const next = neighbour(node, event.key);
      if (next === undefined) return;
      if (next) focusOn(next);
    }
    event.preventDefault();
    event.stopPropagation();
  });
  surface.on("focusin", (event) => {
    const node = nodeOf(event.target);
    if (!node) return;
    rove(node);
    const [x, y] = transform.apply([node.x + node.width / 2, node.y]);
    if (event.target.matches(":focus-visible")) tooltip.show([x, y], nodeCard(node, current.view));
  });
  surface.on("focusout", tooltip.hide);

  function rove(node) {
    nodeElements.forEach((element, index) => element.setAttribute("tabindex", index === node.index ? "0" : "-1"));
  }

  function focusOn(node) {
    rove(node);
    nodeElements[node.index].focus();
  }

  /** The nearest visible node in the direction of an arrow key; null for none, undefined for other keys. */
  function neighbour(node, key) {
    const way = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
    if (!way) return undefined;
    let best = null;
    for (const other of nodes) {
      if (!current.view.nodeShown[other.index] || other === node) continue;
      const [dx, dy] = [other.x - node.x, other.y - node.y];
      const ahead = dx * way[0] + dy * way[1];
      const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (ahead <= 0 || (way[0] && aside > 0)) continue;
      const cost = ahead * (way[1] ? 4 : 1) + aside;
      if (!best || cost < best.cost) best = { other, cost };
    }
    return best?.other ?? null;
  }

  // Everything that a state changes. This is what a step of the slider costs.

  function update(state, view) {
    current = { state, view };
    const focus = focused(state, view);
    const fades = view.counts.onPath > 0; // where nothing is on a path, all faint would tell nothing
    svg.attr("class", `by-${state.colour}${focus ? " focus" : ""}`);
    for (const edge of edges) {
      let words = "gone";
      if (view.shown[edge.index]) {
        words = `edge ${edge.kind}`;
        if (edge.score === null) words += " unmeasured";
        else if (edge.score < 0) words += " negative";
        if (comparing) words += ` ${memberName(view.member[edge.index])}`;
        if (fades && !view.onPath[edge.index]) words += " off";
        if (focus?.edges.has(edge.index)) words += " hot";
      }
      put(edgeElements[edge.index], "class", words);
    }
    under = null;
    const ports = new Set();
    for (const edge of edges) {
      if (view.shown[edge.index] && edge.kind in PORTS) {
        for (const end of edge.ends) ports.add(`${end} ${edge.kind}`);
      }
    }
    for (const node of nodes) {
      const element = nodeElements[node.index];
      const isPinned = state.pin === node.name;
      const words = ["node", node.form];
      if (!view.nodeShown[node.index] && !isPinned) words.push("gone");
      if (fades && !view.nodeOnPath[node.index]) words.push("off");
      if (focus?.nodes.has(node.index)) words.push("hot");
      if (isPinned) words.push("pinned");
      put(element, "class", words.join(" "));
      put(element, "aria-pressed", String(isPinned));
      if (view.nodeShown[node.index]) put(element, "aria-label", nodeLabel(node, view));
      for (const port of element.querySelectorAll(".port")) {
        const isUsed = ports.has(`${node.index} ${port.dataset.kind}`);
        put(port, "class", `port ${port.dataset.kind}${isUsed ? "" : " gone"}`);
      }
    }
    keepTabStop(view);
    const legend = document.getElementById("legend");
    const drawn = legendOf(state, view);
    legend.replaceChildren(...(drawn.items.length ? [drawn.svg] : []));
    legend.hidden = !drawn.items.length;
    legend.setAttribute("aria-label", `Legend: ${drawn.items.map((item) => item.text).join(", ")}`);
    tooltip.hide();
  }

  function keepTabStop(view) {
    const stop = nodes.find((node) => nodeElements[node.index].getAttribute("tabindex") === "0");
    if (stop && view.nodeShown[stop.index]) return;
    const first = nodes.find((node) => view.nodeShown[node.index]);
    if (first) rove(first);
  }

  return { update, place, zoomBy, fit: () => place(null), root: svg.node() };
}

function drawBands(group) {
  bands.forEach((band, index) => {
    group
      .append("rect")
      .attr("class", `band${index % 2 ? "" : " even"}`)
      .attr("x", -WIDE)
      .attr("y", band.top)
      .attr("width", size.width + 2 * WIDE)
      .attr("height", band.bottom - band.top);
    group
      .append("text")
      .attr("class", "band-label")
      .attr("x", 18)
      .attr("y", (band.top + band.bottom) / 2 + 3.5)
      .text(band.label);
  });
}

/** Draws the edges, the largest last, over the others. Returns their elements in the order of `edges`. */
function drawEdges(group) {
  const elements = [];
  for (const edge of [...edges].reverse()) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", "gone");
    path.setAttribute("d", edge.path);
    path.setAttribute("stroke-width", edge.width);
    path.setAttribute("stroke-opacity", edge.opacity);
    elements[edge.index] = path;
    group.node().append(path);
  }
  return elements;
}

function drawNodes(group) {
  return nodes.map((node) => {
    const each = group
      .append("g")
      .attr("class", "node gone")
      .attr("role", "button")
      .attr("tabindex", "-1")
      .attr("data-index", node.index)
      .attr("transform", `translate(${node.x},${node.y})`);
    each
      .append("rect")
      .attr("x", -node.width / 2)
      .attr("y", -NODE_HEIGHT / 2)
      .attr("width", node.width)
      .attr("height", NODE_HEIGHT)
      .attr("rx", RADIUS[node.form]);
    each.append("text").attr("y", 3.8).text(node.name.slice(0, 16));
    if (node.form === "head") {
      for (const [kind, place] of Object.entries(PORTS)) {
        each
          .append("circle")
          .attr("class", `port ${kind} gone`)
          .attr("data-kind", kind)
          .attr("cx", place * node.width)
          .attr("cy", NODE_HEIGHT / 2)
          .attr("r", 2.4);
      }
    }
    return each.node();
  });
}

/** Sets an attribute where it changes: browsers do not compare. */
function put(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// Words about nodes and edges.

function nodeLabel(node, view) {
  const { total, incoming, edges: all } = view.totals[node.index];
  return `${node.name}, total score ${figure(total)}, ${incoming} incoming, ${all - incoming} outgoing`;
}

function nodeCard(node, view) {
  const sums = view.totals[node.index];
  const lines = [{ strong: node.name }, { text: `score ${figure(sums.into)} in, ${figure(sums.out)} out` }];
  const lists = [
    ["strongest incoming", strongest(node.into, view)],
    ["strongest outgoing", strongest(node.out, view)],
  ];
  for (const [heading, list] of lists) {
    if (!list.length) continue;
    lines.push({ heading: `${heading}${list.length > LISTED ? ` of ${list.length}` : ""}` });
    for (const edge of list.slice(0, LISTED)) lines.push({ plain: `${edge.name}  ${figure(edge.score)}` });
  }
  return lines;
}

function edgeCard(edge, view) {
  const lines = [{ strong: edge.name }];
  sides.forEach((side, index) => {
    const whose = comparing ? `${side.name}: ` : "";
    const rank = edge.ranks[index];
    const place = rank === null ? "" : `, number ${rank + 1}`;
    const isIn = view.member[edge.index] & (1 << index);
    const absent = comparing && !isIn && edge.scores[index] === null;
    lines.push({ plain: absent ? `${whose}not in it` : `${whose}score ${figure(edge.scores[index])}${place}` });
  });
  if (edge.ends.length > 1) lines.push({ text: `feeds ${edge.ends.map((end) => nodes[end].name).join(", ")}` });
  if (!view.onPath[edge.index]) lines.push({ text: "on no path from input to logits" });
  return lines;
}

function makeTooltip(stage) {
  const box = document.getElementById("tooltip");
  return {
    show([x, y], lines) {
      box.replaceChildren(
        ...lines.map((line) => {
          const tag = line.strong ? "strong" : line.heading ? "h3" : line.text ? "p" : "div";
          const element = document.createElement(tag);
          element.textContent = line.strong ?? line.heading ?? line.text ?? line.plain;
          return element;
        }),
      );
      box.hidden = false;
      const left = x + 16 + box.offsetWidth > stage.clientWidth ? x - 16 - box.offsetWidth : x + 16;
      box.style.left = `${Math.max(4, left)}px`;
      box.style.top = `${Math.max(4, Math.min(y + 12, stage.clientHeight - box.offsetHeight - 4))}px`;
    },
    hide() {
      box.hidden = true;
    },
  };
}

// The legend: what the colours that are in the picture mean.

/** The legend of a state: its items, and an svg element that shows them. */
export function legendOf(state, view) {
  const items = legendItems(state, view);
  const height = 20;
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const svg = d3.create("svg").attr("class", "legend").attr("height", height);
  let x = 0;
  for (const { colour, text, dashed } of items) {
    const group = svg.append("g").attr("transform", `translate(${x},${height / 2})`);
    const line = group.append("path").attr("d", "M0,0h20").style("stroke", `var(--${colour})`);
    if (dashed) line.attr("stroke-dasharray", "4 3");
    group.append("text").attr("x", 26).attr("y", 3.8).text(text);
    x += 26 + pen.measureText(text).width + 18;
  }
  svg.attr("width", Math.max(x - 14, 1)).attr("viewBox", `0 0 ${Math.max(x - 14, 1)} ${height}`);
  return { items, svg: svg.node(), width: x, height };
}

function legendItems(state, view) {
  const visible = edges.filter((edge) => view.shown[edge.index]);
  const items = [];
  const has = (test) => visible.some(test);
  const scored = (edge) => edge.score !== null;
  if (state.colour === "member") {
    for (const { key, text } of members) {
      if (has((edge) => memberName(view.member[edge.index]) === key)) items.push({ colour: key, text });
    }
  } else if (state.colour === "kind") {
    for (const { key, words } of kinds.slice(0, 3)) {
      if (has((edge) => edge.kind === key && scored(edge) && edge.score >= 0)) items.push({ colour: key, text: words });
    }
    if (has((edge) => !(edge.kind in PORTS) && scored(edge) && edge.score >= 0)) {
      items.push({ colour: "other", text: "into MLP or logits" });
    }
  } else if (has((edge) => scored(edge) && edge.score >= 0)) {
    items.push({ colour: "positive", text: "positive score" });
  }
  if (state.colour !== "member" && has((edge) => scored(edge) && edge.score < 0)) {
    items.push({ colour: "negative", text: "negative score" });
  }
  if (has((edge) => !scored(edge))) items.push({ colour: "unmeasured", text: "not measured", dashed: true });
  return items;
}

// What is visible in a state: which edges, of which side, on which paths; and what is focused on.

import { comparing, edges, nodeByName, nodes, sides } from "./data.js";

/**
 * Says what a state shows.
 *
 * `member[i]` of edge i is 0 where it is not among the first n edges of a side, else 1 for the first side, 2 for the
 * second, 3 for both. `shown[i]` says whether it is visible: a member that no filter hides. `onPath[i]` says whether
 * a path from input to logits, over the members of one side, leads along it.
 */
export function look(state) {
  const member = new Uint8Array(edges.length);
  for (const edge of edges) {
    edge.ranks.forEach((rank, side) => {
      if (rank !== null && rank < state.n) member[edge.index] |= 1 << side;
    });
  }
  const onPath = new Uint8Array(edges.length);
  sides.forEach((_, side) => markPaths(onPath, member, 1 << side));
  const shown = new Uint8Array(edges.length);
  const counts = { members: 0, shown: 0, onPath: 0, both: 0, "only-a": 0, "only-b": 0, nodes: 0 };
  for (const { index, kind } of edges) {
    if (!member[index]) continue;
    counts.members += 1;
    counts[memberName(member[index])] += 1;
    counts.onPath += onPath[index];
    const hidden =
      !state.kinds.has(kind) ||
      (comparing && !state.members.has(memberName(member[index]))) ||
      (state.prune && !onPath[index]);
    shown[index] = hidden ? 0 : 1;
    counts.shown += shown[index];
  }
  const nodeShown = new Uint8Array(nodes.length);
  const nodeOnPath = new Uint8Array(nodes.length);
  for (const edge of edges) {
    if (!shown[edge.index]) continue;
    for (const node of [edge.source, ...edge.ends]) {
      nodeShown[node] = 1;
      nodeOnPath[node] |= onPath[edge.index];
    }
  }
  counts.nodes = nodeShown.reduce((sum, value) => sum + value, 0);
  return { member, onPath, shown, nodeShown, nodeOnPath, counts, totals: totals(shown) };
}

export function memberName(member) {
  return member === 3 ? "both" : member === 2 ? "only-b" : "only-a";
}

function markPaths(onPath, member, bit) {
  const taken = (edge) => member[edge.index] & bit;
  const reached = walk(nodeByName.get("input"), (node) => node.out.filter(taken).flatMap((edge) => edge.ends));
  const used = walk(nodeByName.get("logits"), (node) => node.into.filter(taken).map((edge) => edge.source));
  for (const edge of edges) {
    if (taken(edge) && reached[edge.source] && edge.ends.some((end) => used[end])) onPath[edge.index] = 1;
  }
}

/** Marks the nodes that can be reached from one; `next` gives the indices of those that follow a node. */
function walk(start, next) {
  const seen = new Uint8Array(nodes.length);
  const pending = start ? [start.index] : [];
  if (start) seen[start.index] = 1;
  while (pending.length) {
    for (const index of next(nodes[pending.pop()])) {
      if (!seen[index]) {
        seen[index] = 1;
        pending.push(index);
      }
    }
  }
  return seen;
}

/** The visible ancestors and descendants of a node, and the edges among them and it. */
export function kin(node, view) {
  const visible = (edge) => view.shown[edge.index];
  const above = walk(node, (each) => each.out.filter(visible).flatMap((edge) => edge.ends));
  const below = walk(node, (each) => each.into.filter(visible).map((edge) => edge.source));
  const between = edges.filter(
    (edge) => visible(edge) && (above[edge.source] || edge.ends.some((end) => below[end])),
  );
  const names = (seen) => nodes.filter((each) => seen[each.index] && each !== node);
  return { ancestors: names(below), descendants: names(above), edges: between };
}

/** The visible nodes and edges that a text is about: names that begin with it or hold it after a dot or an arrow. */
export function search(text, view) {
  const wanted = text.trim().toLowerCase();
  const isEdge = wanted.includes(">");
  const matches = (name) => name === wanted || name.startsWith(wanted) || name.includes(`.${wanted}`);
  const found = { nodes: [], edges: [] };
  if (!wanted) return found;
  if (isEdge) {
    found.edges = edges.filter((edge) => view.shown[edge.index] && edge.name.toLowerCase().includes(wanted));
    const ends = new Set(found.edges.flatMap((edge) => [edge.source, ...edge.ends]));
    found.nodes = nodes.filter((node) => ends.has(node.index));
  } else {
    found.nodes = nodes.filter((node) => view.nodeShown[node.index] && matches(node.name.toLowerCase()));
    const chosen = new Set(found.nodes.map((node) => node.index));
    found.edges = edges.filter(
      (edge) => view.shown[edge.index] && [edge.source, ...edge.ends].some((end) => chosen.has(end)),
    );
  }
  return found;
}

/** What is not dimmed: null where nothing is focused on, else indices of nodes and edges. */
export function focused(state, view) {
  const pinned = nodeByName.get(state.pin);
  if (pinned) {
    const { ancestors, descendants, edges: between } = kin(pinned, view);
    return sets([pinned, ...ancestors, ...descendants], between);
  }
  if (state.find.trim()) {
    const found = search(state.find, view);
    if (!found.nodes.length) return sets([], []);
    const ends = found.edges.flatMap((edge) => [edge.source, ...edge.ends]).map((index) => nodes[index]);
    return sets([...found.nodes, ...ends], found.edges);
  }
  return null;
}

const sets = (someNodes, someEdges) => ({
  nodes: new Set(someNodes.map((node) => node.index)),
  edges: new Set(someEdges.map((edge) => edge.index)),
});

/** What the visible edges of every node sum up to: how many, their scores in and out, and in all without signs. */
function totals(shown) {
  const sums = nodes.map((node) => ({ node, name: node.index, edges: 0, incoming: 0, into: 0, out: 0, total: 0 }));
  for (const edge of edges) {
    if (!shown[edge.index]) continue;
    const score = edge.score ?? 0;
    for (const end of edge.ends) {
      sums[end].incoming += 1;
      sums[end].into += score;
    }
    for (const index of [edge.source, ...edge.ends]) {
      sums[index].edges += 1;
      sums[index].total += Math.abs(score);
    }
    sums[edge.source].out += score;
  }
  return sums;
}

/** Edges with the largest scores first. */
export const strongest = (list, view) =>
  list
    .filter((edge) => view.shown[edge.index])
    .sort((a, b) => Math.abs(b.score ?? -1) - Math.abs(a.score ?? -1) || a.index - b.index);

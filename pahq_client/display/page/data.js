// The embedded picture: nodes in the order in which the model computes them, edges by rank, largest score first.

const picture = JSON.parse(document.getElementById("picture").textContent);

export const title = picture.title;
export const size = { width: picture.width, height: picture.height };
export const bands = picture.bands;

// A side is one of the results: {name, measures, points, facts, warnings, prompts, drawn, edges, start, …}.
export const sides = picture.sides;
export const comparing = sides.length === 2;

// `into` and `out` of a node are its edges, by rank.
export const nodes = picture.nodes.map((node, index) => ({ ...node, index, into: [], out: [] }));

// `source` is an index of a node, `ends` are those of the nodes that the edge feeds.
export const edges = picture.edges.map((edge, index) => ({ ...edge, index }));
for (const edge of edges) {
  nodes[edge.source].out.push(edge);
  for (const end of edge.ends) nodes[end].into.push(edge);
}

export const nodeByName = new Map(nodes.map((node) => [node.name, node]));
export const mostEdges = Math.max(0, ...sides.map((side) => side.drawn));

export const kinds = [
  { key: "q", text: "q", words: "query" },
  { key: "k", text: "k", words: "key" },
  { key: "v", text: "v", words: "value" },
  { key: "mlp", text: "MLP", words: "into an MLP" },
  { key: "logits", text: "logits", words: "into the logits" },
];

// Whose edge an edge is, in a comparison.
export const members = [
  { key: "both", text: "both" },
  { key: "only-a", text: comparing ? `only ${sides[0].name}` : "" },
  { key: "only-b", text: comparing ? `only ${sides[1].name}` : "" },
];

/** A number as people read it: at most four digits, "not measured" for null. */
export function figure(value) {
  if (value === null) return "not measured";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "\u2212");
}

export const count = (value) => value.toLocaleString("en-US");
export const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

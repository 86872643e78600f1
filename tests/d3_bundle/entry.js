// All that the page uses of d3.
export { create, pointer, select } from "d3-selection";
export { zoom, zoomIdentity } from "d3-zoom";

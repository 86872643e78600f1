"""Exact scores of single edges: what the metric does when only one edge is ablated."""

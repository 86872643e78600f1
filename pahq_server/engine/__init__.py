"""Executors: patched forward passes, metrics, and the engine that serves them."""

"""Neurons: what it costs to look at the activations of texts.

Read `capture` (time and memory against `floor`), `tables`, then `__main__`.
"""

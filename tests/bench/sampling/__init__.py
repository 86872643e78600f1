"""How many steps policies take to sample, in simulations and for real, against the fewest possible.

`workloads` draws lengths and signals, `simulator` decodes them without a model, `simulated` measures that,
and `tables` says what must hold. ``make bench-sampling`` runs `__main__`.
"""

"""ACDC (Conmy et al. 2023, arXiv:2304.14997): removes every edge whose removal hardly worsens the metric.

`method` is what jobs run, `search` drives the tests and accepts their verdicts, `order` says which test comes
next, `speculation` how many tests are asked for at once.
"""

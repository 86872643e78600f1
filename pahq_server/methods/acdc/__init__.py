"""ACDC (Conmy et al. 2023, arXiv:2304.14997): removes every edge whose removal hardly worsens the metric.

`method` is what jobs run, `order` says which test comes next and what it removes, `search` drives the tests
at one threshold and accepts their verdicts, `speculation` says how many tests are asked for at once, and
`targets` looks for the threshold that leads to a number of edges or a faithfulness.
"""

"""Neurons that carry a value (ValueLocate, arXiv:2505.17712): active in positive texts, not in negative ones.

- `parameters`  what a request may ask, and which tokens it counts
- `choice`      from sums over tokens to the chosen neurons, and their 95th percentiles
- `journal`     what outlives a kill: sums over the parts of the texts that were run
- `artifact`    the neuron set
- `method`      the method of jobs
"""

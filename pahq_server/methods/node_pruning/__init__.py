"""Node pruning (arXiv:2512.10903): which heads, neurons, blocks and layers suffice, found in one training.

- `parameters`  what a request may ask
- `journal`     what outlives a kill: where training stood, and what was measured
- `polish`      from trained gates to a circuit within the budget from which nothing more can go
- `artifact`    the node circuit
- `method`      the method of jobs
"""

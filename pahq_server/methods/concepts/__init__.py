"""Concepts (CLVQ-VAE, arXiv:2506.20040; VQLC, arXiv:2602.02726): what recurs in the states of texts.

- `parameters`  what a request may ask
- `tokens`      which tokens' states are looked at, in which windows, and which of these a step gets
- `files`       the file of states, and checkpoints of training
- `journal`     what outlives a kill: which states are in the file, and which checkpoints there are
- `report`      what each code stands for: sums over all states
- `artifact`    the codebook
- `method`      the method of jobs
- `assigning`   the nearest codes of other texts, as a method of its own
- `examples`    which states a probe is fitted to and asked for
- `ablating`    what states lose without their concepts, as a method of its own
"""

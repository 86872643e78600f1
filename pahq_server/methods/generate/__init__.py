"""Generation: samples of prompts in bounded memory, a few at a time (Infinite Sampling, arXiv:2506.22950).

Read `policies` first: which waiting samples take the free slots. `predictors` says how long samples are going
to be, `fptas` plans whole runs by that, and `admission` puts the three together: it says, turn by turn, which
samples run and for how many steps. None of this changes a sample, only when it is computed.

`parameters` checks what is asked for, `samples` says what a sample is and how it is stored, `sampling` asks
the engine for what `admission` wants to run and takes in what comes out, and `method` makes a method of jobs
of it.
"""

"""Methods: what a job can do with a model. One folder each; none of them holds a tensor.

Read `base` first: a method is a generator that yields engine operations, writes a journal and returns an
artifact. `registry` lists the methods of the server. Then a method: `acdc` and `single_edge` search for
circuits and share `circuits` (how a search runs as a method) and `verdicts` (what it decides); `attribution`
scores edges. `warnings` says what may mislead about a circuit or scores.
"""

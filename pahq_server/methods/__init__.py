"""Methods: what a job can do with a model. One folder each; none of them holds a tensor.

Read `base` first: a method is a generator that yields engine operations, writes a journal and returns an
artifact. `registry` lists the methods of the server. `circuits` and `warnings` are shared by methods whose
artifact is a circuit.
"""

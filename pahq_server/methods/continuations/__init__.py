"""Log-probabilities of given continuations, of a model as it is or with neurons edited.

- `method`  parameters, the method of jobs, its journal and its artifact
"""

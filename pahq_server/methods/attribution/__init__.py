"""Attribution: scores of all edges from gradients, at the cost of a few passes instead of one per edge.

`method` says what all of these methods do, `methods` lists them: each is a rule of the backward pass and the
points at which it takes gradients. `scores` is the artifact that they give.
"""

"""What several workers give: simulated for a large model on many, and measured with real servers here.

`costs` measures what a search costs and scales it to the large model, `scores` makes up scores for its edges,
`simulation` runs searches on simulated workers, `real` drives servers, and `tables` says what must hold.
``make bench-workers`` runs `__main__`.
"""

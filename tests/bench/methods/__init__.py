"""Compares all methods of finding circuits, over gRPC as a user would, with one thread.

`subjects` are the models and tasks, `server` measures what a server spends, `finding` runs the methods,
`judging` measures what they found, `tables` writes it down.
"""

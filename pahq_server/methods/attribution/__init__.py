"""Attribution: scores of all edges from gradients, at the cost of a few passes instead of one per edge.

`method` holds edge attribution patching (EAP), `scores` the artifact that such methods give.
"""

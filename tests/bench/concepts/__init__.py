"""Concepts: planted ones, and those in states of real models against k-means, Ward and sparse autoencoders.

Read `states` (what there is to learn from), `learners` (what learns), `learning` (one of them in a process of
its own), `faithfulness` (what states lose without a concept), `parts`, `tables`, then `__main__`.
"""

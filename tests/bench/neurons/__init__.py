"""Neurons: whether those that carry a value are found, what steering by them does, and what looking costs.

Read `planted` (known neurons), `pronouns` (a trained model), `capture` (time and memory against `floor`),
`tables`, then `__main__`.
"""

"""How faithful the precision policies are, and what they cost: `python -m bench.precision`."""

"""Node pruning: known circuits, budgets against ACDC, and what a step of training costs.

Read `tasks` (what is found), `cost` (memory and time), `tables`, then `__main__`.
"""

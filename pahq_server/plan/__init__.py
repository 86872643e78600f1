"""Plans how much memory and time serving models takes, before anything is loaded.

- `planning`  the plan of models and jobs on a machine, from configurations and headers of weights
- `weights`   how many bytes a model's weights take: resident, on first use, and while they are loaded
- `division`  how several workers share a machine's memory, beside the server and Ray
- `text`      a plan as text and as JSON
"""

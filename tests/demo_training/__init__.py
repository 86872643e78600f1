"""Training of the demo model that ships in `pahq_server.demo`, with ``make demo-model``.

`names` and `corpus` make the training text, `tokenizer` its tokenizer, `train` trains the model and saves it,
`evaluate` measures how well it does the task, and `card` writes the model card with these figures.
"""

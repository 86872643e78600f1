"""Tasks: from prompts and answers as a client sends them to token ids that have been checked.

- `resolve`    the entry: tokenizes and checks a whole task, or shows how texts are tokenized
- `texts`      tokenizes texts within the limits of the model, and quotes them in messages
- `answers`    which token a text is as an answer to a prompt
- `ioi`        the built-in task "ioi", generated for the tokenizer of the served model
- `time_limit` runs tokenizers, which cannot be interrupted, with a limit on their time
"""

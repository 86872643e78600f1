"""Tasks: from prompts and answers as a client sends them to token ids that have been checked.

- `resolve`    the entry: tokenizes and checks a whole task, or shows how texts are tokenized
- `texts`      tokenizes texts within the limits of the model, and quotes them in messages
- `answers`    which token a text is as an answer to a prompt
- `builtin`    the registry of built-in tasks, generated for the tokenizer of the served model
- `generation` what these share: reproducible draws, words that are single tokens
- `ioi`, `greater_than`, `induction`, `pronoun`, `subject_verb`, `docstring`: the built-in tasks
- `time_limit` runs tokenizers, which cannot be interrupted, with a limit on their time
"""

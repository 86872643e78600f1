"""Tasks that the server generates itself, for whatever tokenizer the served model has."""

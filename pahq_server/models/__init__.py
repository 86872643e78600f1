"""Language models: from a checkpoint's files to weights that executors compute with.

In order of reading:

- `architecture`             what is computed, and with which weights: the form that all executors read
- `files`, `checkpoint`      which files a checkpoint consists of; reading their tensors
- `config_fields`, `rope`    account for each field of the configuration, and refuse unknown ones
- `tensor_checks`            accounts for each tensor in the same way
- `adapters`                 one module per checkpoint format
- `building`, `loading`      from a source to a model, piece by piece
- `folding`                  rewriting a model so that its norms have no weights
- `checkpoint_weights`       folded full-precision weights of single heads, read when they are needed
- `resident`, `streaming`    models of which only rounded weights stay in memory
- `tokenizer`                the tokenizer of a checkpoint
"""

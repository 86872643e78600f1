"""One module per checkpoint format, listed in `registry`, which also says what such a module has to offer.

A module of a transformers format declares the fields of the configuration (``FIELDS``), the tensors that may
stand beside the weights (``BUFFERS``) and the prefix of names of tensors (``PREFIX``), and has three short
functions: ``architecture`` reads the configuration, ``embeddings`` the weights outside the layers, ``layer``
those of one layer. `common` holds what several formats share. `hooked` and `hooked_config` read the format of
TransformerLens.
"""

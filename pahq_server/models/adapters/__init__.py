"""One module per checkpoint format; each offers ``architecture``, ``ends`` and ``layer``.

``architecture(config)`` reads a configuration and raises InvalidRequestError (field ``model``) for
anything it cannot represent exactly; ``ends(architecture, config, checkpoint)`` reads all weights but the
layers', ``layer(architecture, config, index, checkpoint)`` those of one layer.

Formats of transformers declare what they account for: ``FIELDS``, the fields of their ``config.json``;
``BUFFERS``, tensors that may be left when all weights have been read; ``PREFIX``, the name of the wrapped
module, which names of tensors may or may not begin with.
"""

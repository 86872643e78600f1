"""One module per checkpoint format; each offers ``architecture``, ``ends`` and ``layer``.

``architecture(config)`` reads a configuration and raises InvalidRequestError (field ``model``) for
anything it cannot represent exactly; ``ends(architecture, config, checkpoint)`` reads all weights but the
layers', ``layer(architecture, index, checkpoint)`` those of one layer.
"""

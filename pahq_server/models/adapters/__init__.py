"""One module per checkpoint format; each offers ``architecture`` and ``weights``.

``architecture(config)`` reads a configuration and raises InvalidRequestError (field ``model``) for
anything it cannot represent exactly; ``weights(architecture, config, checkpoint)`` reads the tensors.
"""

"""Messages and stubs generated from proto/pahq, shared by client and server."""

__version__ = "0.1.0"

"""The PAHQ server: resident models, patched forward passes, and circuit searches over gRPC."""

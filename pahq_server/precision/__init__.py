"""Arithmetic in low precision, and in full precision where a policy promotes heads. In order of reading:

- `policy`     precision policies: in which formats weights and inputs are, by the name that a job gives
- `quantized`  matrices of 8-bit numbers with one scale per output
- `products`   matrix products in full precision whose rows do not depend on each other
- `linear`     products of rounded inputs with rounded matrices, on CPUs and CUDA devices
- `head_store` a cache of full-precision copies of single heads
"""

"""Low precision: policies, number formats, and linear maps in them. A map of the package:

- `policy`: what a job asks for by name, as values
- `quantized`: matrices of 8-bit numbers with one scale per output, and how they are made
- `products`: full-precision products whose rows do not depend on each other
- `linear`: products with such matrices, chosen by device; `reference` is their slow, obvious twin
- `head_store`: full-precision copies of single heads, read when they are wanted
"""

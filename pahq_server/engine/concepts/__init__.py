"""Codebooks of concepts (CLVQ-VAE, arXiv:2506.20040; VQLC, arXiv:2602.02726): training and assignment.

- `codebook`  distances, drawn and nearest codes, moving averages, and the codes that training starts from
- `model`     encoder and decoder, and their weights as one vector
- `training`  the operations
- `probe`     a linear probe of states, with and without the directions of their codes
"""

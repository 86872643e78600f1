"""The PAHQ server: resident models, patched forward passes, and circuit searches over gRPC."""

import logging

# torchao, which transformers imports, too, warns on import of every kernel that is not built for the machine,
# and has torch warn of how it registers its own constants. None of these kernels is used here, and no user
# can do anything about either.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

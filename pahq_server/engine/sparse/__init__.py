"""The fast executor: many patched passes at once, computed as differences from a base circuit.

A patched pass usually changes little: nothing upstream of its removed edges, nothing at positions before the
first difference of clean and corrupted prompt, nothing in nodes without a kept path to the logits. So the
executor keeps the activations of a *base circuit*, and computes for each pass only the nodes whose inputs
differ from it. Passes that agree on all inputs of a node share its computation: they are one *variant* of
that node. A score has the same bits whatever passes are computed beside it, because every matrix product is
row-independent (`precision.products`) and every sum has a fixed order.

All modules work on models with folded norms (`models.folding`), whose norms have no weights. Imports go up
this list, which is also the order to read it in:

- `weights`          the model's matrices by receiver and head, and products of them
- `variants`         grouping passes by the inputs of a node
- `quantized`        the linear maps of a precision policy, and which heads a pass promotes
- `positions`        packed tokens, which positions and nodes are needed, and attention over them
- `memory`           the pool of pages of a device, and tensors that are kept in pages
- `unpatched`        the clean and the ablated run of a job
- `base_activations` the activations of a base circuit
- `batch`            a batch of passes, and what their removed edges change directly
- `contributions`    what changed senders add to the inputs of receivers
- `batch_forward`    the forward pass of a batch, layer by layer
- `scoring`          metrics from the final residual stream
- `executor`         one job, and batches of several jobs
- `backend`          all jobs of a model, with little memory or much
"""

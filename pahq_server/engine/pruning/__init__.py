"""Node pruning (arXiv:2512.10903): gates on nodes of every size, trained by gradients through frozen weights.

A gate mixes the circuit's run with the ablated one where a node puts out its value,
``z * value + (1 - z) * ablated value``:

- attention neurons: z of heads, before W_O, by the product of the gates of layer, attention block, head and
  neuron. Attention's output bias is a constant, and no gate carries it.
- hidden units of MLPs: after activation and gate, by their own gate.
- MLP outputs: what the MLP writes to the residual stream, its bias included, by the product of the gates of
  layer, MLP block and output.

All modules work on models with folded norms (`models.folding`). There, what is written to the residual stream
of a model with layer norms has the mean 0 over features, because its norms would take the mean away. So an
output node of such a model is one feature of what the MLP writes less its mean, and after the gates the mean
is taken away again. The embedding has no gate. With all gates 1 a circuit is the full model. With all gates 0
what the ablated run writes follows the clean embedding, which gives the ablated run's own logits where both
have the same token at the metric position.

The training's memory is that of some prompts at a time: their residual streams before each layer, and the
graph of one layer, which is computed again on the way back. The ablated run is computed again beside the
circuit's, because its values at all sites would take about half of what an edge-mask method keeps; what
prompts share, the means, is kept in pages. Where prompts begin like their corrupted ones, both runs are the
same, and the circuit's begins after that.

Imports go up this list, which is also the order to read it in:

- `gates`     random gates, expected sizes, and products of gates that meet at the same values
- `products`  products with frozen weights (`engine.frozen_weights`) under autograd
- `layers`    one layer, plain and with gates
- `runs`      circuits on a part of the prompts, forward and backward, beside the ablated run
- `losses`    the loss at the metric positions with its gradient, and figures
- `job`       all prompts of a job; what is kept in pages
- `training`  the operations: steps of training, and figures of binary circuits
"""

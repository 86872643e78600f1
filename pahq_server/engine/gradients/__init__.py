"""Edge scores from gradients: backward passes score every edge on a part of the prompts.

The score of an edge s->r is the inner product of what ablating its sender would change in the input of r, and
of the gradient of the metric with respect to that input (edge attribution patching, arXiv:2310.10348):

    score(s->r) = sum over prompts and positions of (ablated_s - clean_s) . g_r

In the full model all receivers before one norm read the same residual stream, so an ordinary forward pass
gives all clean values, and g_r is what flows back through receiver r alone. The job's clean and ablated run
are there already (`sparse.unpatched`); only runs between them are computed. The backward pass is written out
by hand, goes layer by layer from the top and computes each layer's inner values again, so that nothing but
the residual streams is kept. Its rules (`core.operations.BackwardRule`) are what tells most methods apart.
Gradients at queries, keys and values stay d_head wide, and are averaged over points as such. Only the
contraction makes vectors of width d_model of them, a few tokens at a time, and multiplies them with the
differences of all senders below: one matrix product per layer.

All modules work on models with folded norms (`models.folding`). These give the scores of the plain ones:
folding centres what senders write, and the gradient at a layer norm's input is centred by itself, so the
inner products are the same. Imports go up this list, which is also the order to read it in:

- `activations`  a part of the prompts, and the runs of the full model on it
- `backward`     gradients at all receivers
- `contraction`  their inner products with the differences of senders
- `scorer`       the operation on a job
"""

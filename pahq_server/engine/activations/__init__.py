"""Activations of texts: sums over neurons, chosen neurons, residual streams, log-probabilities.

Texts run through the full model, layer by layer, with the frozen weights of a precision policy. Nothing is
kept of a layer but what was asked for, so that memory is that of one layer of one part of the texts.

A token's values depend on the tokens before it alone (in models that see both ways: on its text), to the last
bit on CPUs: not on other texts, nor on where a text is cut off. So texts that begin alike share the tokens of
their beginning: each token is computed once for all texts of a part that are the same up to it. Between parts
nothing is shared.

Imports go up this list, which is also the order to read it in:

- `texts`       packed texts: the distinct tokens of some texts without padding, and attention over them
- `run`         the model's pass over packed texts, which stops at each layer's neurons; steering
- `reducers`    sums, histograms and top tokens of neurons, added up layer by layer and part by part
- `operations`  the operations of `core.activations`
"""

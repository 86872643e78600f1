"""The fast executor: many hypotheses per sweep, as differences from an anchored circuit.

Map of the package, in order of use:

- `tokens`   which positions can change and which are needed
- `clean`    the clean and the corrupted pass: the values that every base starts from
- `plan`     which nodes are live under a circuit, and where; printable
- `weights`  the model in the form the sweep wants, with composed head-to-receiver matrices
- `reference` what all bases of a job share
- `base`     values of an anchored circuit, computed when first asked for
- `cuts`     what the removed edges of a batch of rows change directly
- `rows`     a batch of rows and the bases they differ from
- `receivers` what receivers read in them, given the changes of senders
- `sweep`    carries changes upward through the live nodes, all rows at once
- `scoring`  metrics from the final residual stream, as differences from the full model
- `executor` puts them together behind the same interface as the literal executor

All of it works on a model with folded norms (`models.folding`): norms are bare RMS norms.
"""

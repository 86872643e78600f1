"""The fast executor: removes_most hypotheses per sweep, as differences from an anchored circuit.

Map of the package, in order of use:

What a job needs once:

- `tokens`    which positions can change and which are needed; tokens packed without padding
- `clean`     a plain forward pass: the values that every base starts from
- `prefix`    keys and values before the window, shared by all that begin alike
- `reference` what all bases of a job share
- `plan`      which nodes are live under a circuit, and where; printable
- `base`      values of an anchored circuit, computed when first asked for
- `paged`     where all of these are kept: block tables over the pool of `pahq_server.memory`

What happens in a sweep:

- `rows`      a batch of rows, of any jobs of a model, and the bases they differ from
- `ablations`      what the removed edges of the rows change directly
- `variants`  rows that agree on all inputs of a node are computed once
- `receivers` what receivers read in them, given the changes of senders; `terms` adds up one sender's
- `sweep`     carries changes upward through the live nodes, all rows at once; `attention` of one head
- `scoring`   metrics from the final residual stream, as differences from the full model
- `weights`   the model in the form the sweep wants, with composed head-to-receiver matrices
- `activations` whose elements do not depend on their neighbours

What runs it:

- `executor`  one job, and the rows of several in one sweep; behind the literal executor's interface
- `scratch`   how removes_most rows fit into a sweep
- `shared`    the memory of a device, and what the jobs of a model share
- `backend`   runs the jobs of a model whatever room there is
- `work`      counts the operations that rows need, for benchmarks

All of it works on a model with folded norms (`models.folding`): norms are bare RMS norms.
"""

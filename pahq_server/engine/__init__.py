"""Runs models: what the server's worker asks for, one operation at a time.

`engine.ModelEngine` serves loaded models. It checks objectives, opens the tensors of a job (`EngineState`),
and runs operations by their class, from the registry in `runners`. Patched passes go to the backend of their
model and precision policy (`backends`): the fast executor in `sparse`, or the literal one in `literal` and
`literal_rounded`, which is the executable form of the graph's definition and serves for comparison and for
policies that round activations.

Read `runners`, then `engine` and `backends`; then `transformer`, `metrics` and `literal`, which say what is
computed; then `sparse`. `cost` (operations, seconds, bytes), `devices` and `self_test` (a loaded model
against transformers) stand by themselves.
"""

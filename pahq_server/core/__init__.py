"""Value types and protocols that every other package of the server builds on.

In order of reading: `graph` (senders, receivers, edges) and `circuit` (which edges are kept, and forward
passes under them), `task` and `engine` (what is asked of a model, and the protocol of what computes it),
`operations` (what methods ask the engine for), `artifact` (what a job gives). `errors` are those that clients
see, `context` says who is being served, `observer` is told what happens.
"""

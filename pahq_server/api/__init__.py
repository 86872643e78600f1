"""The gRPC services: the only part of the server that knows protobuf.

A call enters through `gate` (admission, deadlines, errors) and is answered by a servicer: `jobs`, `patching`
or `info`. `conversion` turns messages into values and back, `calls` knows whose call a task works on and does
its work in threads, `errors` turns errors into gRPC status. `server` puts all of it on a port, with `health`
beside it and the bounds of `connections`.
"""

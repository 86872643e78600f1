"""What the server tells about itself: metrics, traces and the log. Never prompts or tokens.

Read `telemetry` first: everything that happens is told to one observer, which passes it to `metrics` (shown
to Prometheus by `endpoint`), to `tracing` (OpenTelemetry) and to the log, whose lines `logs` writes.
"""

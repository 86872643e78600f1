"""What a real server process tells."""

from __future__ import annotations

import re

from e2e.process import ServerProcess
from helpers.scrape import scrape, value

from pahq_client import Client, Task

METRICS = ("--metrics-listen", "127.0.0.1:0")


def metrics_address(server: ServerProcess) -> str:
    found = re.search(r"metrics on http://([^/]+)/metrics", server.log())
    assert found, server.log()
    return found[1]


def test_a_discovery_shows_in_the_metrics() -> None:
    with ServerProcess(None, *METRICS, "--log-format", "json") as server, Client(server.address) as client:
        job = client.submit("demo", Task.ioi(num_prompts=2), threshold=0.5)
        circuit = job.result(timeout=120)
        now = scrape(metrics_address(server))
        assert value(now, "pahq_jobs", state="succeeded") == 1
        assert value(now, "pahq_jobs", state="queued") == 0
        assert value(now, "pahq_jobs_ended_total", state="succeeded") == 1
        assert value(now, "pahq_queue_wait_seconds_count") == 1
        assert value(now, "pahq_evaluations_total") == circuit.num_evaluations
        rows = sum(value(now, "pahq_search_rows_total", outcome=name) for name in ("accepted", "wasted"))
        # Also the full model and the empty circuit are computed.
        assert circuit.num_evaluations <= rows < value(now, "pahq_batch_rows_sum")
        assert value(now, "pahq_batch_duration_seconds_sum") > 0
        create = "pahq.v1.DiscoveryService/CreateDiscovery"
        assert value(now, "pahq_rpc_duration_seconds_count", method=create, code="OK") == 1
        assert value(now, "pahq_rpcs_in_flight", method=create) == 0
        assert value(now, "pahq_watchers") == 0

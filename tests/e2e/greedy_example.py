"""A search of one's own: greedy pruning. It decides here, a server scores. Usage: ... HOST:PORT"""

import sys

import pahq_client

THRESHOLD, BATCH = 0.05, 32


def prune(session: pahq_client.Session) -> list[str]:
    """From the logits down, removes every edge that costs less than the threshold; returns the others."""
    metric, waiting, kept = session.full, session.edges[::-1], []
    while waiting:
        # Most edges go. So ask at once: what if the next one went, the next two, the next three, ...?
        chain = waiting[:BATCH]
        scores = session.score_removed(chain[: i + 1] for i in range(len(chain)))
        removed = 0
        while removed < len(chain) and scores[removed] - metric < THRESHOLD:
            metric, removed = scores[removed], removed + 1
        session.commit(removed=chain[:removed])
        # The next one matters and stays, if there is one; the scores behind it assumed that it had gone.
        decided = chain[: removed + 1]
        kept += decided[removed:]
        waiting = waiting[len(decided) :]
    return kept


if __name__ == "__main__":
    with pahq_client.Client(sys.argv[1]) as client, client.session("demo", "ioi") as session:
        circuit = prune(session)
        (metric,) = session.score([circuit])
    print(f"{len(circuit)} of {session.num_edges_total} edges")
    print(f"KL divergence {metric:.3f}; full model {session.full:.3f}, empty circuit {session.empty:.3f}")
    print(*circuit[:3], "...", sep="\n")

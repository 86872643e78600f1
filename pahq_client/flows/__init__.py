"""What clients do, written once for the blocking and the asynchronous ones; see `pahq_client.flow`."""

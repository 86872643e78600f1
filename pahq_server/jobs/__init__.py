"""Jobs: their life from the request to the circuit."""

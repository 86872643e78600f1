"""Benchmarks: ``make bench`` prints one table and stores it under tests/bench/results."""

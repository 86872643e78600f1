"""Deciding whose hypotheses are scored next."""

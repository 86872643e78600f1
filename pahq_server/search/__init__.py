"""Searches: generators that yield hypotheses and receive scores. They hold no tensor."""

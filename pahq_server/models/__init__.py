"""Language models: architecture descriptions, weights, and one adapter per checkpoint format."""

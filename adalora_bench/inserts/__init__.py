"""What methods other than low-rank ones put into a model: bottlenecks, prefixes, a ladder. Knows no training."""

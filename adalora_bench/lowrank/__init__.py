"""The low-rank layer and the pure functions that score and allocate ranks. Knows nothing of training."""

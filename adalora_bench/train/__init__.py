"""The loop, its state, its clock and its checkpoints."""

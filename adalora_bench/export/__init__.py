"""What leaves the project: a recorded model as a PEFT adapter or as a merged checkpoint."""

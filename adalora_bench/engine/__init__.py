"""Who trains what, where, and how it ended: units, workers, launchers, the plan, the progress."""

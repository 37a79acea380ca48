"""adalora_bench: reproduce the benchmarks of five papers on adaptive low-rank adaptation."""

__version__ = "0.1.0"

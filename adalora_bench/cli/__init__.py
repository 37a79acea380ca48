"""The bench command. Thin; what is heavy is imported late."""

from adalora_bench.cli.parser import main

__all__ = ["main"]

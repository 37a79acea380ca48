"""adalora_bench: reproduce the benchmarks of five papers on adaptive low-rank adaptation."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["attach"]


def __getattr__(name: str) -> Any:
    """`adalora_bench.attach` brings torch along, so it is imported when it is asked for."""
    if name == "attach":
        from adalora_bench.own_loop import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

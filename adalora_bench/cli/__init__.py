"""The bench command. Thin; what is heavy is imported late."""

from adalora_bench.cli.parser import main

__all__ = ["main", "script"]


def script() -> int:
    """The command as a shell starts it: `main` in whatever surroundings there are."""
    from adalora_bench.cli.surroundings import settle

    settle()
    return main()

"""python -m adalora_bench.cli: the bench command without its script."""

import sys

from adalora_bench.cli import script

if __name__ == "__main__":
    sys.exit(script())

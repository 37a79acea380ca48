"""python -m adalora_bench.cli: the bench command without its script."""

import sys

from adalora_bench.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())

"""Runs the command."""

import sys

from layered_sglang.bench.command import main

if __name__ == "__main__":
    sys.exit(main())

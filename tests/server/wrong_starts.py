"""Run as a program: starts that are refused, one after another in one process.

Its argument is a JSON list of argument lists; each one's status and what it wrote to standard error are
a line ``CASE [status, text]``.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from layered_sglang.launch_server import main

if __name__ == "__main__":
    for argv in json.loads(sys.argv[1]):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                status = main(argv)
            except SystemExit as stop:
                status = stop.code
        print("CASE " + json.dumps([status, errors.getvalue()]))

"""Evaluation: read data, embed, search, measure, compare and report. No gradients; imports nothing of the other packages."""

import sys as _sys

if _sys.argv[:1] == ["-m"]:  # `python -m` is about to import a command of this package, which takes seconds
    from eval.signals import guard_imports as _guard_imports

    _guard_imports()

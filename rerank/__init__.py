"""Reranking: score (image, caption) pairs with a cross-encoder and re-order the head of a first stage's ranking. Imports eval only."""

import sys as _sys

if _sys.argv[:1] == ["-m"]:  # `python -m` is about to import a command of this package, which takes seconds
    from eval.signals import guard_imports as _guard_imports

    _guard_imports()

"""Names of the rules by which scores of several models, or of several views, become one; and of what is chosen on another split."""

from typing import Literal, get_args

Pooling = Literal["mean", "max", "log-sum-exp", "reciprocal-rank"]
Combination = Literal["logits", "reciprocal-rank"]
Choice = Literal["ensemble", "expansion"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
REMOVED_COMBINATIONS = ("standardised", "probabilities")
COMBINING_CHOICES: tuple[Choice, ...] = get_args(Choice)
"""What can be chosen on another split."""


def combination_fault(word: object) -> str:
    """Why a word names no combination; empty where it names one.

    >>> combination_fault("logits"), combination_fault("votes")
    ('', "expected one of logits, reciprocal-rank; found 'votes'")
    """
    if word in COMBINATIONS:
        return ""
    removed = ", which was removed: no choice on val took it (docs/ensembles.md)" if word in REMOVED_COMBINATIONS else ""
    return f"expected one of {', '.join(COMBINATIONS)}; found {word!r}{removed}"

"""The settings of every scorer."""

import pytest

from rerank.scorers.scorer import ScorerSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16"}, "precision: expected 'float32' or 'bfloat16'; found 'bf16'"),
        ({"score_kind": "logit"}, "score_kind: expected 'match_logit' or 'margin'; found 'logit'"),
    ],
)
def test_a_value_that_is_not_known_is_refused_and_not_taken_for_another(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScorerSettings(**settings)

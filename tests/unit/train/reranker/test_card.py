"""The card of a tuned reranker (train/reranker/finish.py): it claims mined negatives only for weights that saw them."""

import pytest

from train.config.reranker import RerankerConfig
from train.engine.checkpoint import State
from train.reranker.finish import cross_encoder_card


@pytest.mark.parametrize(
    ("step", "claimed"),
    [(0, "none, for these are the weights that it began with"), (5, "of each image up to 2 hard captions and 1 hard images")],
)
def test_only_trained_weights_are_said_to_have_seen_mined_negatives(step: int, claimed: str) -> None:
    config = RerankerConfig.model_validate(
        {
            "name": "birds",
            "miner": "m",
            "model": {"base": "b"},
            "data": {"source": "birds.csv"},
            "negatives": {"captions_per_image": 2, "images_per_caption": 1},
            "train": {"max_steps": 9, "batch_size": 8, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1},
        }
    )
    state = State(step=9, evaluated=True, best_step=step, best_score=0.5, base_sha256="f" * 64, data_sha256="d")
    assert f"mined negatives: {claimed}" in cross_encoder_card(config, state, step)

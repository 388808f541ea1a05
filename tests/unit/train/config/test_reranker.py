"""train/config/reranker.py: what contradicts itself is refused, every key has its sentence."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.small_reranker_job import RerankerWorld
from train.config import reranker as reranker_config
from train.config.load import ConfigError, load_run_config
from train.config.reranker import RerankerConfig, is_reranker

WORLD = RerankerWorld(Path("pairs.jsonl"), Path("siglip"), Path("blip"))

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shard": ({"train__shard": True}, "shard: a cross-encoder is not kept in parts"),
    "shard false": ({"train__shard": False}, "leave it out"),
    "lora of all": ({"model__what": "all", "model__lora": {"rank": 2}}, "lora does nothing with what: all"),
    "no negatives": ({"negatives__captions_per_image": 0, "negatives__images_per_caption": 0}, "nothing to tell a true caption from"),
    "drawn from too few": ({"negatives__drawn_from": 1}, "drawn_from 1 is fewer"),
    "beyond the pool": ({"negatives__pool_top_k": 3}, "drawn_from 4 is more than rank_min 1 and pool_top_k 3 leave"),
    "rank_min": ({"negatives__rank_min": 28}, "drawn_from 4 is more than rank_min 28 and pool_top_k 30 leave"),
    "only easy": ({"negatives__easy_until_step": 6}, "leaves no step of train.max_steps 6"),
    "no probability": ({"negatives__drop_matches_at": 1.5}, "negatives.drop_matches_at"),
    "a tower's rate": ({"train__image_learning_rate": 1e-4}, "train.image_learning_rate: unknown key"),
    "a constant": ({"constant_answer": {"within": 0.05}}, "constant_answer: unknown key"),
    "misspelt": ({"negatives__fill_with_esy": True}, "did you mean fill_with_easy"),
    "no splits": ({"data__train_split": None}, "val_split and data.test_split must be null too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError) as raised:
        load_run_config(RerankerConfig, WORLD.write_config(tmp_path, **changes))
    assert words in str(raised.value)


def test_overrides_and_defaults(tmp_path: Path) -> None:
    path = WORLD.write_config(tmp_path, model__what="lora")
    config = load_run_config(RerankerConfig, path, ["negatives.images_per_caption=0", "train.max_steps=7"])
    assert config.model.adapters is not None and config.model.adapters.rank == 16
    assert config.negatives.num_wanted == 2 and config.train.max_steps == 7
    assert load_run_config(RerankerConfig, WORLD.write_config(tmp_path, model__what="head")).model.adapters is None


def test_what_an_earlier_run_wrote_of_a_constant_answer_is_left_out(tmp_path: Path) -> None:
    """Its values then are constants now; other ones are refused (above)."""
    path = WORLD.write_config(tmp_path, constant_answer={"within": 0.03, "over_steps": 50})
    assert load_run_config(RerankerConfig, path, []) == load_run_config(RerankerConfig, WORLD.write_config(tmp_path), [])


def test_the_rules_of_mining_are_the_ones_asked_for() -> None:
    negatives = reranker_config.NegativesConfig(drawn_from=5, margin=-1.0, near_duplicates=True, rank_min=3, perc_pos=0.9)
    assert reranker_config.NegativesConfig().mining("columns").denoise is None
    denoise = reranker_config.NegativesConfig(drop_matches_at=0.3).mining("images").denoise
    assert denoise is not None and (denoise.mode, denoise.threshold) == ("drop", 0.3)
    for form in ("columns", "images"):
        mining = negatives.mining(form)
        assert (mining.negatives_per_image, mining.margin, mining.near_duplicates) == (5, -1.0, True)
        assert (mining.rank_min, mining.perc_pos, mining.pool_top_k, mining.form) == (3, 0.9, 64, form)


def test_a_file_is_known_by_its_miner(tmp_path: Path) -> None:
    assert is_reranker(WORLD.record(tmp_path)) and not is_reranker({"name": "demo", "mining": {}})


def test_every_key_is_documented() -> None:
    kinds = [kind for kind in vars(reranker_config).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    sections = [kind for kind in kinds if kind.__module__ == "train.config.reranker"]
    undocumented = {f"{kind.__name__}.{name}" for kind in sections for name, field in kind.model_fields.items() if not field.description}
    assert undocumented == {f"RerankerConfig.{name}" for name in ("model", "negatives", "train", "evaluation")}

"""train/config/nearest_key.py: a key in the wrong section, misspelt, or by another trainer's name leads to the right one."""

from collections.abc import Sequence

import pytest

from train.config.job import JobConfig
from train.config.nearest_key import OTHER_WORDS, keys_of, nearest_key
from train.config.reranker import RerankerConfig


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (["learning_rate"], "train.learning_rate"),
        (["batch_size"], "train.batch_size"),
        (["data", "batch_size"], "train.batch_size"),
        (["source"], "data.source"),
        (["model", "num_workers"], "data.num_workers"),
        (["model", "rank"], "model.lora.rank"),
        (["train", "lr"], "learning_rate"),
        (["lr"], "train.learning_rate"),
        (["model", "lr"], "train.learning_rate"),
        (["train", "bs"], "batch_size"),
        (["batch"], "train.batch_size"),
        (["train", "num_epochs"], "epochs"),
        (["train", "wd"], "weight_decay"),
        (["data_path"], "data.source"),
        (["data", "data_path"], "source"),
        (["model_name"], "model.base"),
        (["model", "pretrained"], "base"),
        (["workers"], "data.num_workers"),
        (["train", "warmup_ratio"], "warmup_steps"),
        (["train", "gradient_accumulation_steps"], "micro_batch_size"),
        (["train", "fp16"], "precision"),
        (["train", "Learning-Rate"], "learning_rate"),
        (["train", "learning_rat"], "learning_rate"),
        (["max_step"], "train.max_steps"),
        (["watch", 0, "on_dro"], "on_drop"),
        (["zzz"], None),
        (["train", "zzz"], None),
    ],
)
def test_the_key_that_was_meant(location: Sequence[int | str], expected: str | None) -> None:
    assert nearest_key(JobConfig, location) == expected


def test_a_rerankers_tuning_is_led_to_its_own_keys() -> None:
    assert nearest_key(RerankerConfig, ["negatives", "margn"]) == "margin"
    assert nearest_key(RerankerConfig, ["images_per_caption"]) == "negatives.images_per_caption"
    assert nearest_key(RerankerConfig, ["lora"]) == "model.lora"
    assert nearest_key(RerankerConfig, ["rerank_top_k"]) is None  # of rerank, which it does not have


def test_every_other_word_leads_to_a_key_that_is_there_and_to_one_alone() -> None:
    keys = [key for key, _ in keys_of(JobConfig)]
    words = [word for some in OTHER_WORDS.values() for word in some]
    assert set(OTHER_WORDS) <= set(keys) and len(set(words)) == len(words)
    assert not {key.rpartition(".")[2] for key in keys} & set(words)

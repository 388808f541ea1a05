"""train/optim/fsdp.py: what does not go with weights in parts is refused, all of it named."""

from typing import Any

import pytest

from eval.errors import UserError
from eval.processes import Processes
from train.config.job import JobConfig
from train.optim.fsdp import check_shardable

TWO = Processes(1, 2)


def config(*, shard: bool = True, model: dict[str, Any] | None = None, **train: Any) -> JobConfig:
    record = {"max_steps": 10, "batch_size": 8, "learning_rate": 1e-4, "eval_every_steps": 5, "checkpoint_every_steps": 5}
    model = {"base": "somewhere"} | (model or {})
    return JobConfig.model_validate(
        {"name": "job", "model": model, "data": {"source": "pairs.csv"}, "train": record | {"shard": shard} | train}
    )


REFUSED: dict[str, dict[str, Any]] = {
    "train.micro_batch_size": {"micro_batch_size": 2},
    "train.compile": {"compile": True},
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_does_not_go_with_it_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"does not go with {key}; leave out"):
        check_shardable(config(**REFUSED[key]), TWO)
    check_shardable(config(shard=False, **REFUSED[key]), TWO)


def test_several_are_named_at_once() -> None:
    with pytest.raises(UserError, match="train.micro_batch_size, train.compile;"):
        check_shardable(config(compile=True, micro_batch_size=4), TWO)


def test_one_process_is_refused_and_what_works_is_not() -> None:
    with pytest.raises(UserError, match="start several, or set train.shard=false"):
        check_shardable(config(), Processes())
    check_shardable(config(model={"gradient_checkpointing": True, "lora": {}, "freeze": ["text"]}, precision="bf16"), TWO)

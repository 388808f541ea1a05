"""train/data/inputs.py: every input that is wrong is named in one refusal, whatever else is wrong."""

from pathlib import Path
from typing import Any

import pytest

from eval.errors import NotFinite, UserError
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run
from train.data.inputs import input_faults, with_other_faults
from train.reranker.__main__ import run as run_reranker


def wrong(world: SmallWorld, folder: Path, **changes: Any) -> dict[str, Any]:
    return world.record(
        folder,
        **{
            "data__source": "none.csv",
            "data__truth": "none.qrels",
            "model__base": "/no/base",
            "rerank": {"model": str(world.base)},
            "mining__pool": "none.txt",
            "watch": [{"name": "old", "source": "old.csv"}, {"name": "new"}],
            "evaluation": {"models": {"other": "/no/other"}, "ensemble": {"members": {"more": "/no/more:0.5"}}, "qrels": "more.qrels"},
            "choices": ["none.jsonl"],
            **changes,
        },
    )


NAMED = {
    "none.csv": "data",
    "old.csv": "data",
    "none.txt": "data",
    "model.base: '/no/base'": "models",
    "rerank.model: '": "models",
    "evaluation.models.other: '/no/other'": "models",
    "evaluation.ensemble.members.more: '/no/more'": "models",
    "data.truth: none.qrels": "files",
    "evaluation.qrels: more.qrels": "files",
    "choices: none.jsonl": "files",
}


def test_every_input_is_looked_at_on_its_own(small_world: SmallWorld, tmp_path: Path) -> None:
    faults = input_faults(wrong(small_world, tmp_path))
    assert len(faults) == len(NAMED)
    assert all(any(words in fault for fault in faults) for words in NAMED)
    without = input_faults(wrong(small_world, tmp_path), with_data=False)
    assert without == [fault for fault in faults if not any(words in fault for words, kind in NAMED.items() if kind == "data")]
    assert input_faults(small_world.record(tmp_path)) == []


@pytest.mark.parametrize("record", [{}, {"model": None, "data": 3, "watch": {}, "choices": "x", "evaluation": [], "rerank": {"model": 1}}])
def test_values_of_another_kind_are_left_to_the_configuration(record: dict[str, Any]) -> None:
    assert input_faults(record) == []


def test_a_fault_is_told_once_and_another_kind_of_error_alone(small_world: SmallWorld, tmp_path: Path) -> None:
    record = small_world.record(tmp_path, model__base="/no/base")
    (fault,) = input_faults(record)
    told = with_other_faults(UserError("no column 'caption'"), record, with_data=True)
    assert str(told) == f"no column 'caption'\n{fault}"
    assert str(with_other_faults(told, record, with_data=True)) == str(told)
    assert str(with_other_faults(UserError(fault.removeprefix("model.base: ")), record, with_data=True)).count("/no/base") == 1
    shared = UserError("on all processes")
    shared.is_shared = True
    assert with_other_faults(shared, record, with_data=False).is_shared and not told.is_shared
    ruined = NotFinite("weights")
    assert with_other_faults(ruined, record, with_data=True) is ruined


def test_a_refused_configuration_names_its_data_and_models_too(
    small_world: SmallWorld, reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_world.write_config(tmp_path, data__source="none.csv", model__base="/no/base", learning_rate=1e-4, train__batch=8)
    assert run([str(path)]) == 2
    error = capsys.readouterr().err
    for words in (
        "2 fault(s) in the configuration",
        "learning_rate: unknown key; did you mean train.learning_rate?",
        "train.batch: unknown key; did you mean batch_size?",
        "none.csv: no such file or folder",
        "model.base: '/no/base': no such folder is here",
    ):
        assert words in error
    path = reranker_world.write_config(tmp_path, data__source="none.csv", miner="/no/miner", model__base=str(small_world.base), train__lr=1)
    assert run_reranker([str(path)]) == 2
    error = capsys.readouterr().err
    for words in ("train.lr: unknown key", "none.csv: no such file", "miner: '/no/miner'", "cannot rerank images and captions"):
        assert words in error


def test_faulty_data_do_not_hide_a_model_that_is_not_there(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes in ({}, {"train__max_steps": None}):  # sizes given, and sizes that follow from the data
        path = small_world.write_config(tmp_path, data__source="none.csv", model__base="/no/base", **changes)
        assert run([str(path)]) == 2
        error = capsys.readouterr().err
        assert "none.csv: no such file or folder" in error and "model.base: '/no/base'" in error
        assert error.count("/no/base") == 1 and "Traceback" not in error

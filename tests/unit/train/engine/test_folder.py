"""train/engine/folder.py: a run goes on though the base is now named with a revision of the hub, and not with another base."""

from pathlib import Path

import pytest
import yaml

from eval.errors import UserError
from train.config.load import load_config
from train.engine.folder import claim_folder


def test_a_revision_may_be_named_later_and_another_base_may_not(tmp_path: Path) -> None:
    record = {
        "name": "a",
        "runs_folder": str(tmp_path),
        "model": {"base": "someone/siglip"},
        "data": {"source": "pairs.jsonl"},
        "train": {"max_steps": 9, "batch_size": 8, "learning_rate": 1e-5, "eval_every_steps": 3, "checkpoint_every_steps": 3},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(record))

    def claim(base: str) -> None:
        claim_folder(load_config(tmp_path / "job.yaml", [f"model.base={base}"])).close()

    claim("someone/siglip")
    (tmp_path / "a" / "finished.json").write_text("{}")
    for base in ("someone/siglip@v1", "someone/siglip", f"someone/siglip@{'a' * 40}"):
        claim(base)
    run = tmp_path / "a"
    advice = rf"start from what it learnt: \./launch\.sh export {run} --output {run}-export, then model\.base={run}-export"
    with pytest.raises(UserError, match=rf"model\.base: 'someone/siglip' -> 'someone/other'\n.*{advice}"):
        claim("someone/other@v1")
    (tmp_path / "a" / "export").mkdir()
    with pytest.raises(UserError, match=rf"start from what it learnt: model\.base={tmp_path}/a/export"):
        claim("someone/other@v1")


def test_the_rest_of_evaluation_may_change_and_its_precision_may_not(tmp_path: Path) -> None:
    """Val's figures choose the best checkpoint, so they are all of one precision."""
    record = {
        "name": "a",
        "runs_folder": str(tmp_path),
        "model": {"base": "someone/siglip"},
        "data": {"source": "pairs.jsonl", "val_split": "val"},
        "train": {"max_steps": 9, "batch_size": 8, "learning_rate": 1e-5, "eval_every_steps": 3, "checkpoint_every_steps": 3},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(record))

    def claim(*changes: str) -> None:
        claim_folder(load_config(tmp_path / "job.yaml", changes)).close()

    claim()
    (tmp_path / "a" / "finished.json").write_text("{}")
    claim("evaluation.protocol=papers", "evaluation.models={other: someone/other}", "evaluation.trec=true")
    with pytest.raises(UserError, match=r"evaluation\.precision: 'fp32' -> 'bf16'"):
        claim("evaluation.precision=bf16")

"""`python -m train.mining --model DIR --data PAIRS`: the same table as with a configuration, byte for byte, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from eval.processes import Processes
from tests.small_job import SmallWorld
from train.config.load import load_config
from train.mining import __main__ as command
from train.mining.pairs import ASKED, mine_pairs, mining_rules


def run_here(arguments: list[str], output: Path) -> None:
    asked = command.parse([*arguments, "--output", str(output), "--num-workers", "0"])
    command.run_pairs(asked, output, Processes(), torch.device("cpu"))


@pytest.mark.parametrize(
    "words", [[], ["mining.negatives_per_image=2", "mining.pool_top_k=40", "mining.margin=-6.0"], ["--preset", "hard", "mining.rank_min=2"]]
)
def test_table_and_report_are_those_of_a_configuration(
    small_world: SmallWorld, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mining: dict[str, Any] = {"mine_every_epochs": 1}
    if "--preset" in words:
        mining["preset"] = "hard"
    overrides = [word for word in words if word.startswith("mining.")]
    record = small_world.record(tmp_path / "runs")
    record["mining"] = mining
    (tmp_path / "job.yaml").write_text(json.dumps(record))
    command.mine(load_config(tmp_path / "job.yaml", overrides))
    before = capsys.readouterr().out
    run_here(["--model", str(small_world.base), "--data", str(small_world.manifest), *words], tmp_path / "mined")
    said = capsys.readouterr().out
    one, two = (sorted(folder.iterdir()) for folder in (tmp_path / "runs" / "job" / "negatives", tmp_path / "mined"))
    two = [path for path in two if path.name != ASKED]
    assert [path.suffix for path in one] == [".html", ".json", ".parquet"]
    assert [path.name for path in one] == [path.name for path in two]
    first = [path.read_bytes().replace(b" before the first step", b"") for path in one]  # of a run the page says when
    assert first == [path.read_bytes() for path in two] and first[1:] == [path.read_bytes() for path in one[1:]]
    assert said.partition("\nwritten to")[0] in before and str(two[2]) in said


def test_the_rows_have_their_texts(small_world: SmallWorld, tmp_path: Path) -> None:
    mined = mine_pairs(str(small_world.base), str(small_world.manifest), tmp_path, split="val", rules="gentle")
    dataset = load_split(read_manifest(small_world.manifest), "val")
    text = dict(zip(dataset.caption_ids, dataset.captions, strict=True))
    rows = mined.table.to_pylist()
    assert len(rows) == mined.report.num_mined > 0 and [row["caption"] for row in rows] == [text[row["caption_id"]] for row in rows]
    assert mined.table.drop_columns(["caption"]).equals(pq.read_table(mined.path)) and mined.path.with_suffix(".html").is_file()


def test_data_without_splits_are_mined_whole(small_world: SmallWorld, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    for row in rows:
        row.pop("split")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = str(small_world.manifest.parent)
    mined = mine_pairs(str(small_world.base), str(tmp_path / "pairs.jsonl"), tmp_path / "mined", image_root=root)
    assert mined.report.num_images == len(rows)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"negatives": 3}, "mining.negatives: unknown key; did you mean negatives_per_image"),
        ({"pool_top_k": 0}, "mining.pool_top_k"),
        ("soft", "mining.preset: Input should be 'gentle', 'standard' or 'hard'; found 'soft'"),
        ({"mine_every_steps": 3}, "mining.mine_every_steps: of a run's training"),
        ({"weight": 0.5, "scope": "window"}, "mining.scope and mining.weight: of a run's training"),
    ],
)
def test_rules_that_cannot_be_used_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mining_rules(rules)


def test_a_cross_encoder_is_named(small_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mining.denoise: expected the model of one cross-encoder, found none"):
        mine_pairs(str(small_world.base), str(small_world.manifest), tmp_path, rules={"denoise": {}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected CONFIG.yaml, or --model and --data; found neither"),
        (["--model", "M"], "--model: give --model and --data, both, in place of CONFIG.yaml"),
        (["configs/demo.yaml", "--output", "O"], "--output: give --model and --data, both, in place of CONFIG.yaml"),
        (["--model", "M", "--data", "D", "--column", "group"], "--column takes OURS=THEIRS"),
    ],
)
def test_words_that_do_not_go_together(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(words)
    assert message in capsys.readouterr().err


def test_keys_of_other_sections_are_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the keys of mining alone can be given, mining.KEY=VALUE; found train"):
        run_here(["--model", str(small_world.base), "--data", str(small_world.manifest), "train.max_steps=3"], tmp_path)

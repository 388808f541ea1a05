"""python -m eval.choices as a user runs it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.choices.__main__ import main

ROOT = Path(__file__).parents[4]
MODELS = ROOT / "demo" / "models"


@pytest.fixture
def choices(pictures: list[Path], sentences: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "choices.jsonl"
    rows = [{"image": p.name, "caption": sentences[n], "false_captions": sentences[40 + n : 42 + n]} for n, p in enumerate(pictures[:8])]
    rows += [{"images": [p.name, q.name], "captions": sentences[:2]} for p, q in zip(pictures[:3], pictures[3:6], strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(arguments: list[object]) -> int:
    try:
        return main([str(word) for word in arguments])
    except SystemExit as ended:  # argparse
        assert isinstance(ended.code, int)
        return ended.code


def test_measures_alone_and_with_a_reranker(
    choices: Path,
    pictures: list[Path],
    tiny_siglip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--model", tiny_siglip, "--also", f"demo={MODELS / 'siglip-base'}", "--data", choices, "--image-root", pictures[0].parent]
    asked += ["--rerank", MODELS / "blip-itm", "--output", tmp_path / "out", "--num-workers", 0]
    assert run(asked) == 0
    record = json.loads((tmp_path / "out" / "choices.json").read_text())
    assert list(record["stages"]) == ["model", "demo", "blip", "model+blip", "demo+blip"]
    assert (record["data"]["num_examples"], record["data"]["num_images"]) == (11, 8)
    table = pq.read_table(tmp_path / "out" / "choices.parquet").to_pandas()
    said = capsys.readouterr().out
    for stage, rows in table.groupby("stage"):
        for metric, figure in record["stages"][stage]["overall"].items():
            values = rows[metric].dropna()
            assert (figure["value"], figure["num_examples"]) == (pytest.approx(values.astype(float).mean()), len(values))
            assert f"{100 * figure['value']:.1f}" in said
    assert "by category" not in said and "choices.json" in said


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--model": "no/such/folder/at/all"}, 2, "no such folder is here"),
        ({"--data": "nowhere.jsonl"}, 2, "cannot be read as a choice set"),
        ({"--image-root": "."}, 2, "14 x missing file"),
        ({"--also": "model=somewhere"}, 2, "needs a name of its own"),
        ({"--also": "somewhere"}, 2, "--also takes NAME=MODEL"),
        ({"--num-workers": -1}, 2, "--num-workers: expected a whole number, 0 or more; found '-1'"),
        ({"--output": "FILE/under"}, 4, "could not write"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    choices: Path,
    pictures: list[Path],
    tiny_siglip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    code: int,
    message: str,
) -> None:
    (tmp_path / "file").write_text("a file where a folder is wanted")
    asked: dict[str, object] = {"--model": tiny_siglip, "--data": choices, "--image-root": pictures[0].parent, "--output": tmp_path / "out"}
    asked |= {option: tmp_path / "file" / "under" if value == "FILE/under" else value for option, value in change.items()}
    assert run([word for option, value in asked.items() for word in (option, value)]) == code
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "choices.json").exists()


def test_captions_that_the_model_cannot_tell_apart_are_said_and_counted(
    pictures: list[Path], tiny_siglip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs behind the cut scores equal, which counts as wrong: not without a word."""
    long = "a red dog sits on the left of a blue square and a green cat runs above the big circle and "
    rows: list[dict[str, object]] = [{"image": pictures[0].name, "caption": long + "a dog", "false_captions": [long + "a cat"]}]
    rows += [{"image": pictures[1].name, "caption": "a dog", "false_captions": ["a cat", "a square"]}]
    rows += [{"images": [pictures[2].name, pictures[3].name], "captions": [long + "a dog", long + "a square"]}]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["--model", tiny_siglip, "--data", tmp_path / "choices.jsonl", "--image-root", pictures[0].parent, "--num-workers", 0]
    assert run([*asked, "--output", tmp_path / "out"]) == 0
    (texts,) = json.loads((tmp_path / "out" / "choices.json").read_text())["texts"]
    assert (texts["stages"], texts["num_tokens"], texts["num_equal_examples"], texts["num_examples"]) == (["model"], 16, 2, 3)
    assert [texts[key]["num_captions"] for key in ("cut", "unknown", "equal")] == [3, 0, 3]
    line = "model: 2 of 3 examples have a true and a false caption of equal tokens: equal scores, which count as wrong"
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("texts    model: 3 captions are longer than the 16 tokens") and said[2] == f"texts    {line}"
    assert line in (tmp_path / "out" / "choices.html").read_text()

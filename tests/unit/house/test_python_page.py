"""docs/python.md: five examples of at most 15 lines, which run as they stand from the repository's folder."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))
SHOWN = {
    "Evaluate my embeddings": r"^0\.\d+ \[0\.\d+, 0\.\d+\]\n$",
    "Mine with my checkpoint and pairs": r"^mined [1-9]\d* negatives for 200 images .*known positives mined: 0\n\[\{'image_id': 'val-",
    "Rerank my candidate lists": r"^(.+ \('runs/val-000\d\.png', -?\d+\.\d+\)\n){2}$",
    "Compute the sigmoid loss in my own loop": "^$",
    "Load a report": r"(?s)tuned against base 0\.\d+ .* better\n.*\d+ queries of tuned whose answer is not among the first ten\n$",
}


def test_there_are_five_examples_of_at_most_15_lines() -> None:
    assert [*EXAMPLES] == [*SHOWN] and PAGE.count("```python") == 5
    assert {name: source.count("\n") for name, source in EXAMPLES.items() if len([line for line in source.split("\n") if line]) > 15} == {}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("demo", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": "example"})
    shown = capsys.readouterr().out
    assert re.search(SHOWN[name], shown), shown
    if name.startswith("Mine"):
        assert sorted(path.suffix for path in (tmp_path / "runs" / "mined").iterdir()) == [".html", ".json", ".parquet"]

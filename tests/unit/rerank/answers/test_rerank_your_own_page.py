"""docs/rerank-your-own.md: its snippets run on what the command writes, and it names the columns and options there are."""

import re
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest
import torch

from eval.processes import Processes
from rerank.__main__ import parse, run
from rerank.answers.table import schema

PAGE = (Path(__file__).parents[4] / "docs" / "rerank-your-own.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(small_world, tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's own command wrote out/answers.parquet, with small models."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    (folder / "out").mkdir()
    for path in sorted((small_world.manifest.parent / "pictures").glob("test-*.png"))[:6]:
        (folder / "photos" / path.name).write_bytes(path.read_bytes())
    (folder / "captions.txt").write_text("a red circle\na blue square\na green bar\nan orange circle\n")
    command = re.search(r"^\./launch\.sh rerank (.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL).group(1).replace("\\\n", " ").split()
    here = {"google/siglip-base-patch16-224": str(small_world.base), "Salesforce/blip-itm-base-coco": str(tiny_blip)}
    here |= {"PATH/TO/PICTURES": str(folder / "photos"), "PATH/TO/captions.txt": str(folder / "captions.txt")}
    here |= {"out/answers.parquet": str(folder / "out" / "answers.parquet")}
    assert set(here) <= set(command)
    run(parse([here.get(word, word) for word in command]), Processes(), torch.device("cpu"))
    return folder


def test_the_pandas_snippet_gives_each_pictures_best_caption(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(snippet, "rerank-your-own.md", "exec"), names)
    rows = [row for row in pq.read_table("out/answers.parquet").to_pylist() if row["direction"] == "image_to_text"]
    best = {
        query: max((r for r in rows if r["query"] == query), key=lambda r: r["rerank_score"])["candidate"]
        for query in {r["query"] for r in rows}
    }
    assert isinstance(names["best"], pandas.DataFrame) and len(best) == 6
    assert dict(zip(names["best"]["query"], names["best"]["candidate"], strict=True)) == best


def test_the_sql_snippet_finds_the_changed_captions(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    monkeypatch.chdir(written)
    (snippet,) = re.findall(r"^```sql\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    rows = pq.read_table("out/answers.parquet").to_pylist()
    changed = {row["query"] for row in rows if row["direction"] == "text_to_image" and row["rank"] == 1 and row["first_rank"] > 1}
    assert {row[0] for row in duckdb.sql(snippet).fetchall()} == changed


def test_the_page_names_every_column_and_option(capsys: pytest.CaptureFixture) -> None:
    columns = re.search(r"^\| column \| what \|\n(.*?)\n\n", PAGE, flags=re.MULTILINE | re.DOTALL).group(1)
    cells = [line.split("|")[1] for line in columns.splitlines()[1:]]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == schema(reranked=True, calibrated=True).names
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out.partition("options:")[0])) - {"--help"}
    table = PAGE.partition("## Options")[2]
    assert options and set(re.findall(r"^\| (`--.*?) \|", table, flags=re.MULTILINE)) != set()
    assert set(re.findall(r"--[a-z-]+", "".join(re.findall(r"^\| (`--.*?) \|", table, flags=re.MULTILINE)))) == options

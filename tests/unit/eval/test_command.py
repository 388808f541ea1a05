"""python -m eval as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import BertConfig

from eval.__main__ import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def manifest(pictures: list[Path], sentences: list[str]) -> Path:
    path = pictures[0].parent / "command.jsonl"
    lines = [
        json.dumps({"image": picture.name, "captions": sentences[n : n + 2], "split": "test" if n < 30 else "train"})
        for n, picture in enumerate(pictures)
    ]
    path.write_text("\n".join(lines))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)


def test_measures_and_reports(manifest: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    done = run("--model", tiny_siglip, "--data", manifest, "--split", "test", "--output", tmp_path / "out", "--num-workers", 1)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(record["stages"]) == ["model"] and (record["data"]["num_images"], record["data"]["num_captions"]) == (30, 60)
    ranks = pq.read_table(tmp_path / "out" / "queries.parquet").to_pandas().groupby("direction")["rank"]
    for direction, recall in ranks.apply(lambda rank: (rank <= 1).mean()).items():
        assert record["stages"]["model"][direction]["R@1"] == pytest.approx(recall, abs=1e-12)
        assert f"{100 * recall:.2f}" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file() and "report.html" in done.stdout


def test_column_names_are_mapped(pictures: list[Path], tiny_siglip: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("file,text\n" + "".join(f"{path.name},a dog {n}\n" for n, path in enumerate(pictures[:3])))
    columns = ["--column", "image=file", "--column", "caption=text", "--slice-by", "text", "--image-root", pictures[0].parent]
    done = run("--model", tiny_siglip, "--data", data, "--output", tmp_path / "out", "--num-workers", 0, *columns)
    assert done.returncode == 0, done.stderr
    slices = json.loads((tmp_path / "out" / "report.json").read_text())["slices"]
    assert {row["bin"]: row["num_queries"] for row in slices if row["by"] == "text"} == {f"a dog {n}": 1 for n in range(3)}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--model": "no/such/folder/at/all"}, 2, "no such folder is here"),
        ({"--data": "nowhere.csv"}, 2, "no such file or folder"),
        ({"--split": "val"}, 2, "no row has split 'val'; splits found: 'test', 'train'"),
        ({"--split": None}, 2, "say which"),
        ({"--rerank": "BERT", "--top-k": 10}, 2, "BERT"),
        ({"--rerank": "BERT", "--top-k": 31}, 2, "--top-k: expected no more candidates than there are; found 31"),
        ({"--data": "BROKEN"}, 2, "cannot be read as parquet"),
        ({"--output": "FILE/under"}, 4, "could not write"),
        ({"--top-k": 0}, 2, "--top-k: expected 1 candidate per query or more; found 0"),
        ({"--column": "image"}, 2, "--column takes OURS=THEIRS"),
        (
            {"--also": "other=demo/models/blip-itm"},
            2,
            "demo/models/blip-itm: expected a SigLIP checkpoint (model_type 'siglip'), found 'blip'",
        ),
        ({"--also": "other=/no/such"}, 2, "'/no/such': no such folder is here (paths are relative to"),
        ({"--compare": "model:base"}, 2, "--compare: no stage is called ['base']; there will be ['model']"),
        ({"--compare": "model:model"}, 2, "--compare: ['model'] would be compared with itself"),
        ({"--rerank": "cross-encoder/ms-marco-MiniLM-L6-v2", "--top-k": 10}, 2, "it is a text-text reranker (known by its name)"),
        (
            {"--qrels": "OTHER"},
            2,
            "none of the 1 pairs of the qrels file are of split 'test', e.g. 'img-1' 'cap-1'. Image ids look like '000.png'",
        ),
        ({"--qrels": "THREE"}, 2, "three.qrels:2: expected `QUERY_ID 0 ITEM_ID RELEVANCE`, found '000.png 001.png#0 1'"),
        ({"--qrels": "EMPTY"}, 2, "empty.qrels: expected pairs of relevance above 0, found none in 1 line(s)"),
        ({"--data": "CORRUPT"}, 2, "corrupt-4.png: cannot be decoded: no picture of a known format (JPEG"),
        ({"--slice-by": "colour"}, 2, "slices by 'colour' were asked for; columns found: ['image', 'captions', 'split']"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    manifest: Path,
    tiny_siglip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    code: int,
    message: str,
) -> None:
    BertConfig().save_pretrained(tmp_path / "bert-cross-encoder")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "file").write_text("a file where a folder is wanted")
    (tmp_path / "other.qrels").write_text("img-1 0 cap-1 1\n")
    (tmp_path / "three.qrels").write_text("000.png 0 001.png#0 1\n000.png 001.png#0 1\n")
    (tmp_path / "empty.qrels").write_text("000.png 0 001.png#0 0\n")
    corrupt = [{"image": f"corrupt-{n}.png", "caption": f"a dog {n}", "split": "test"} for n in range(7)]
    for row in corrupt:
        (tmp_path / row["image"]).write_bytes(b"no picture")
    (tmp_path / "corrupt.jsonl").write_text("\n".join(map(json.dumps, corrupt)))
    stand_ins = {"BERT": tmp_path / "bert-cross-encoder", "BROKEN": tmp_path / "broken.parquet", "FILE/under": tmp_path / "file" / "under"}
    stand_ins |= {name.upper(): tmp_path / f"{name}.qrels" for name in ("other", "three", "empty")}
    stand_ins["CORRUPT"] = tmp_path / "corrupt.jsonl"
    asked: dict[str, object] = {"--model": tiny_siglip, "--data": manifest, "--split": "test", "--output": tmp_path / "out"}
    asked |= {option: stand_ins.get(str(value), value) for option, value in change.items()}
    words = [str(word) for option, value in asked.items() if value is not None for word in (option, value)]
    monkeypatch.setattr(sys, "argv", ["eval", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert (ended.value.code, "Traceback" in errors) == (code, False), errors
    assert message.replace("BERT", "bert-cross-encoder") in errors
    assert not (tmp_path / "out" / "report.json").exists()


def test_exit_code_of_the_process(tiny_siglip: Path, tmp_path: Path) -> None:
    done = run("--model", tiny_siglip, "--data", tmp_path / "nowhere.csv", "--output", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "nowhere.csv: no such file or folder" in done.stderr

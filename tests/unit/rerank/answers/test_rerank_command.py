"""`python -m rerank`: what it writes and prints, what it refuses before the work, and several processes against one."""

import json
import re
import shutil
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from eval.errors import UserError
from eval.processes import Processes
from rerank.__main__ import parse, run
from tests.nursery import Nursery
from tests.small_job import SmallWorld

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def photos(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures (two blocks of the encoder), of which one of the second block does not decode, and their captions."""
    root = tmp_path_factory.mktemp("photos")
    for path in (small_world.manifest.parent / "pictures").glob("train-*.png"):
        shutil.copy(path, root)
    (root / "train-037.png").write_bytes(b"no picture")
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    captions = [caption for row in rows if row["split"] == "train" for caption in row["captions"]]
    (root / "captions.txt").write_text("\n".join(captions) + "\n\n")
    return root


@pytest.fixture(scope="module")
def arguments(photos: Path, small_world: SmallWorld, tiny_blip: Path) -> list[str]:
    models = ["--model", str(small_world.base), "--rerank", str(tiny_blip), "--top-k", "4", "--num-workers", "0", "--pages", "7"]
    return [*models, "--images", str(photos), "--captions", str(photos / "captions.txt"), "--skip-broken"]


@pytest.fixture(scope="module")
def alone(arguments: list[str], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder one process writes to, and its output."""
    folder = tmp_path_factory.mktemp("alone")
    child = nursery.start("rerank", [*arguments, "--output", str(folder / "new" / "a.parquet")], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 0, child.output()
    return folder / "new", child.output()


def test_table_and_page_are_written_and_the_summary_has_the_results(alone: tuple[Path, str], photos: Path) -> None:
    folder, said = alone
    assert sorted(path.name for path in folder.iterdir()) == ["a.html", "a.pair-scores", "a.parquet", "a.skipped.jsonl"]
    rows = pq.read_table(folder / "a.parquet").to_pylist()
    num_captions = len(set((photos / "captions.txt").read_text().split("\n")) - {""})
    queries = {
        direction: {row["query_id"] for row in rows if row["direction"] == direction} for direction in ("image_to_text", "text_to_image")
    }
    assert len(queries["image_to_text"]) == 39 and len(queries["text_to_image"]) == num_captions
    assert len(rows) == 4 * (39 + num_captions) and not any("train-037" in row["candidate_id"] for row in rows)
    changed = {one: sum(row["rank"] == 1 and row["first_rank"] != 1 for row in rows if row["direction"] == one) for one in queries}
    assert f"pictures   40 in {photos} (skipped: 1 that are no pictures (1 .txt))" in said
    assert re.search(rf"captions   {num_captions} in .*captions\.txt \(1 blank; {82 - num_captions} repeated\)", said)
    (listed,) = (json.loads(line) for line in (folder / "a.skipped.jsonl").read_text().splitlines())
    assert listed["image"] == "train-037.png" and "cannot be decoded" in listed["reason"]
    assert f"left out   1 pictures that do not decode ({folder}/a.skipped.jsonl)\n" in said and "train-037.png: cannot be decoded" in said
    for direction, query, answers in (("image_to_text", "pictures", "captions"), ("text_to_image", "captions", "pictures")):
        total = len(queries[direction])
        assert f"answers    4 {answers} for each of {total} {query}; another first answer for {changed[direction]} of {total} (" in said
    pairs = {frozenset((row["query_id"], row["candidate_id"])) for row in rows}
    assert re.search(rf"reranking \({len(pairs)} pairs of \d+ pictures, [\d,.]+ pairs/s\)", said)
    assert f"table      {folder}/a.parquet ({len(rows)} rows)\npage       {folder}/a.html" in said
    assert (folder / "a.html").read_text().count("<article") == 7


def test_a_second_run_scores_only_what_is_new_within_its_time_and_margin(
    arguments: list[str], alone: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kept = shutil.copytree(alone[0] / "a.pair-scores", tmp_path / "kept")
    run_here([*arguments, "--output", str(tmp_path / "b.jsonl"), "--pair-scores", str(kept), "--seconds", "9999", "--skip-margin", "0.02"])
    said = capsys.readouterr().out
    assert "K = 4, 39 pictures" in said and "reranking (0 pairs of 0 pictures; " in said
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()]
    scored = [row for row in rows if row["rerank_score"] is not None]
    assert f"{len({frozenset((row['query_id'], row['candidate_id'])) for row in scored})} pairs were scored by an earlier run" in said
    assert 0 < len(scored) < len(rows) and all(row["rank"] == row["first_rank"] for row in rows if row["rerank_score"] is None)
    assert "not scored" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize("num", [2, 3])
def test_several_processes_write_the_same_bytes(
    nursery: Nursery, arguments: list[str], alone: tuple[Path, str], tmp_path: Path, num: int
) -> None:
    ranks = nursery.start_ranks("rerank", [*arguments, "--output", str(tmp_path / "new" / "a.parquet")], num)
    assert [child.wait() for child in ranks] == [0] * num, ranks[0].output()
    assert (tmp_path / "new" / "a.parquet").read_bytes() == (alone[0] / "a.parquet").read_bytes()
    assert re.sub(r'href="[^"]*"', "", (tmp_path / "new" / "a.html").read_text()) == re.sub(
        r'href="[^"]*"', "", (alone[0] / "a.html").read_text()
    )
    assert all(child.output() == "" for child in ranks[1:])


def test_processes_that_see_other_captions_are_refused_together(nursery: Nursery, arguments: list[str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    ranks = []
    for rank, text in enumerate(("a red circle", "a blue circle")):
        (tmp_path / f"{rank}.txt").write_text(text)
        asked = [*arguments, "--captions", str(tmp_path / f"{rank}.txt"), "--output", str(tmp_path / "a.csv")]
        ranks.append(nursery.start("rerank", asked, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}))
    assert [child.wait() for child in ranks] == [2, 2], ranks[0].output()
    assert "the 2 processes do not see the same pictures and captions" in ranks[0].output()


def run_here(arguments: list[str]) -> None:
    run(parse(arguments), Processes(), torch.device("cpu"))


def test_without_a_reranker_the_first_stage_is_written(arguments: list[str], alone: tuple[Path, str], tmp_path: Path, capsys) -> None:
    at = arguments.index("--rerank")
    asked = [*arguments[:at], *arguments[at + 2 :], "--pages", "0", "--direction", "text_to_image", "--top-k", "100"]
    run_here([*asked, "--output", str(tmp_path / "a.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.skipped.jsonl"] and list(rows[0])[-1] == "first_rank"
    best = {row["query_id"]: row for row in rows if row["first_rank"] == 1}
    for row in pq.read_table(alone[0] / "a.parquet").to_pylist():
        if row["direction"] == "text_to_image" and row["first_rank"] == 1:
            assert best[row["query_id"]]["candidate_id"] == row["candidate_id"]
    said = capsys.readouterr().out
    assert "note       there are 40 pictures, fewer than --top-k 100: each caption gets them all" in said
    assert "another first answer" not in said and "reranking" not in said and "page" not in said


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--images", "NOWHERE"], 2, "no such file or folder"),
        (["--images", "EMPTY"], 2, "no pictures in it"),
        (["--captions", "NOWHERE.txt"], 2, "no such file"),
        (["--captions", "EMPTY.txt"], 2, "no captions: it is empty"),
        (["--captions", "LATIN.txt"], 2, "save the file as UTF-8"),
        (["--model", "BLIP"], 2, "expected a SigLIP checkpoint"),
        (["--rerank", "cross-encoder/ms-marco-MiniLM-L-6-v2"], 2, "text-text reranker"),
        (["--rerank", "SIGLIP"], 2, "bi-encoder"),
        (["--output", "FILE/a.parquet"], 4, "could not write"),
        (["--output", "/proc/a.parquet"], 4, "could not write"),
        (["--output", "FOLDER.csv"], 4, "a folder has this name"),
        (["--captions", "SAME.csv", "--output", "SAME.csv"], 2, "is what --captions names, and would be overwritten"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(
    arguments: list[str], small_world: SmallWorld, tiny_blip: Path, tmp_path: Path, change: list[str], code: int, message: str, capsys
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FOLDER.csv").mkdir()
    for name, content in {"EMPTY.txt": b"", "LATIN.txt": b"b\xe4r", "FILE": b"", "SAME.csv": b"caption\na dog\n"}.items():
        (tmp_path / name).write_bytes(content)
    places = {"BLIP": str(tiny_blip), "SIGLIP": str(small_world.base)}
    local = [places.get(word, str(tmp_path / word) if word[0].isupper() else word) for word in change]
    with pytest.raises(UserError, match=message) as caught:
        run_here([*arguments, "--output", str(tmp_path / "a.parquet"), *local])
    assert caught.value.exit_code == code and "pictures   " not in capsys.readouterr().out
    assert not (tmp_path / "a.parquet").exists() and (tmp_path / "SAME.csv").read_bytes() == b"caption\na dog\n"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--top-k", "0"], "--top-k: expected a whole number, 1 or more; found '0'"),
        (["--output", "a.xlsx"], "expected a name that ends in one of .parquet, .csv, .jsonl"),
        (["--column", "image"], "--column takes OURS=THEIRS"),
        (["--column", "picture=x"], "are not columns of ours"),
        (["--precision", "bfloat16"], "--precision is about the reranker"),
        (["--seconds", "5"], "--seconds is about the reranker"),
        (["--no-pair-scores"], "--no-pair-scores is about the reranker"),
        (["--rerank", "b", "--seconds", "0"], "--seconds is above 0"),
        (["--rerank", "b", "--skip-margin", "-1"], "--skip-margin is a difference of cosines"),
        (["--caption-id-column", "x"], "--caption-id-column is of a table of captions"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(extra: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--model", "m", "--images", "i", "--output", "a.csv", *extra])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_on_the_demo_reranking_puts_more_right_captions_first(tmp_path: Path) -> None:
    """The command has no ground truth; the demo has."""
    scenes = [row for row in pq.read_table(ROOT / "demo/data/scenes.parquet").to_pylist() if row["split"] == "test"][:20]
    for number, row in enumerate(scenes):
        (tmp_path / f"{number:02d}.png").write_bytes(row["image"]["bytes"])
    (tmp_path / "captions.txt").write_text("\n".join(row["captions"][0] for row in scenes))
    models = ["--model", str(ROOT / "demo/models/siglip-base"), "--rerank", str(ROOT / "demo/models/blip-itm"), "--top-k", "8"]
    run_here([*models, "--images", str(tmp_path), "--captions", str(tmp_path / "captions.txt"), "--output", str(tmp_path / "a.parquet")])
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    pictures = [row for row in rows if row["direction"] == "image_to_text" and int(row["query_id"][:2]) == int(row["candidate_id"]) - 1]
    before, after = (sum(row[name] == 1 for row in pictures) for name in ("first_rank", "rank"))
    assert 2 <= before < after - 3 and after >= 14, (before, after)

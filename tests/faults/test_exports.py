"""An export can be checked: it holds the SHA-256 of its files, and nothing is read from a damaged one, nor shown of a damaged report."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eval.encoder.sealed import verify
from tests.export_checks import check_card, check_padding, check_portable
from tests.faults.runs import Run, assert_same
from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.config.load import read_run
from train.engine.checkpoint import Checkpoints
from train.siglip.export import export_checkpoint


@pytest.fixture(scope="module")
def finished(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run; not to be changed."""
    run = Run.make(nursery, small_world, tmp_path_factory.mktemp("finished"), train__max_steps=4, mining=None)
    run.finish()
    return run


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Run:
    shutil.copytree(finished.config.parent / "runs", tmp_path / "runs")
    (tmp_path / "job.yaml").write_text(finished.config.read_text().replace(str(finished.config.parent), str(tmp_path)))
    return replace(finished, config=tmp_path / "job.yaml")


def flip(path: Path, place: float = 0.5) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    path.write_bytes(raw)


def ends(run: Run, module: str, arguments: list[str], code: int, *words: str) -> None:
    child = run.nursery.start(module, arguments)
    assert child.wait() == code, child.output()
    assert all(word in child.output() for word in words) and "Traceback" not in child.output(), child.output()


def check_manifest(export: Path) -> None:
    """It names every file but itself and the card, with hashes computed here."""
    hashes = json.loads((export / "manifest.json").read_text())["sha256"]
    assert hashes == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in export.iterdir()
        if path.name not in ("manifest.json", "README.md")
    }
    assert {"config.json", "model.safetensors"} < hashes.keys() and verify(export) == ""


def test_every_writer_of_exports_gives_them_a_manifest_and_what_others_read(finished: Run, small_world: SmallWorld, tmp_path: Path) -> None:
    run, export = str(finished.folder), finished.folder / "export"
    check_manifest(export)
    ends(finished, "train.export", [run, "--output", str(tmp_path / "one"), "--checkpoint", "4"], 0)
    first, last = Checkpoints(finished.folder / "checkpoints").steps()[-2:]
    ends(finished, "train.soup", [f"{run}@{first}", f"{run}@{last}", "--output", str(tmp_path / "soup")], 0)
    ends(finished, "train.wise", [run, "--output", str(tmp_path / "wise"), "--alphas", "0.5", "--keep", "0.5"], 0)
    captions = ["A dog, RUNS!", "red circle " * 40, "", "a blue bar at the top"]
    for folder in (export, *(tmp_path / name for name in ("one", "soup/export", "wise/export"))):
        check_manifest(folder)
        check_portable(folder, tmp_path, finished.folder, small_world.base, small_world.manifest.parent)
        check_padding(folder, captions)
        check_card(folder, small_world.manifest.parent / "pictures")
    (tmp_path / "one" / "README.md").write_text("Edited.")
    ends(finished, "train.soup", [str(tmp_path / "one"), f"{run}@{first}", "--output", str(tmp_path / "of-one")], 0)


def test_figures_are_in_the_card_of_the_very_weights_they_are_of(finished: Run, copy: Run, tmp_path: Path) -> None:
    """By the weights' hash, whatever step was asked for; and not from a report that was changed since."""
    config, own = read_run(finished.folder), (finished.folder / "export" / "model.safetensors").read_bytes()
    has_figures = []
    for step in Checkpoints(finished.folder / "checkpoints").steps():
        export_checkpoint(config, str(step), tmp_path / str(step))
        card = (tmp_path / str(step) / "README.md").read_text()
        has_figures.append("| tuned | image to text |" in card)
        assert has_figures[-1] == ((tmp_path / str(step) / "model.safetensors").read_bytes() == own) == ("were not measured" not in card)
    assert has_figures.count(True) == 1 < len(has_figures)
    path = copy.folder / "eval" / "test" / "report.json"
    path.write_text(path.read_text().replace("[", "[ ", 1))
    export_checkpoint(read_run(copy.folder), "best", tmp_path / "again")
    assert "were not measured" in (tmp_path / "again" / "README.md").read_text()


@pytest.fixture(params=["model.safetensors", "config.json"])
def damaged(finished: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(a copy of the export in which one file is damaged where it still can be read, the file's name)."""
    export = shutil.copytree(finished.folder / "export", tmp_path / "damaged")
    if request.param == "config.json":
        path = export / "config.json"
        path.write_text(path.read_text().replace('"layer_norm_eps": 1e-06', '"layer_norm_eps": 1e-05'))
    else:
        flip(export / request.param, 0.9)
    yield str(export), request.param


def test_a_damaged_export_is_refused_wherever_a_siglip_is_read(
    finished: Run, small_world: SmallWorld, damaged: tuple[str, str], tmp_path: Path
) -> None:
    model, name = damaged
    words = (f"{model} is damaged: {name} does not have the bytes that were written", "Export or copy it again")
    data = ["--data", str(small_world.manifest), "--output", str(tmp_path / "out")]
    ends(finished, "eval", ["--model", model, *data, "--split", "test"], 2, *words)
    ends(finished, "train", [str(finished.config), "name=other", f"model.base={model}"], 2, *words)
    mining = ["name=other", f"model.base={model}", "mining={mine_every_steps: 2}"]
    ends(finished, "train.mining", [str(finished.config), *mining], 2, *words)
    ends(finished, "train.soup", [model, f"{finished.folder}@4", "--output", str(tmp_path / "soup")], 2, *words)
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_damaged_export_of_a_reranker_or_its_retriever_is_refused(
    nursery: Nursery, reranker_world: RerankerWorld, finished: Run, tmp_path: Path
) -> None:
    run = Run.make(nursery, reranker_world, tmp_path, train__max_steps=2, miner=str(finished.folder / "export"))
    run.finish()
    export = run.folder / "export"
    check_manifest(export)
    assert "is finished:" in run.finish()[0].output()
    flip(export / "model.safetensors", 0.9)
    words = "model.safetensors does not have the bytes that were written"
    ends(run, "train", [str(run.config)], 2, "is finished, and damaged since: export/", words, "remove")
    ends(run, "train", [str(run.config), "name=other", f"model.base={export}"], 2, words)
    retriever = shutil.copytree(finished.folder / "export", tmp_path / "retriever")
    (retriever / "manifest.json").write_text("{")
    ends(run, "train", [str(run.config), "name=other", f"miner={retriever}"], 2, f"{retriever} is damaged: JSONDecodeError")
    question = [
        "--model",
        str(finished.folder / "export"),
        "--images",
        str(reranker_world.manifest),
        "--split",
        "test",
        "--output",
        str(tmp_path / "out.csv"),
    ]
    ends(run, "rerank", [*question, "--rerank", str(export)], 2, words)


def test_a_finished_run_shows_no_figures_of_a_damaged_export_or_report(copy: Run, finished: Run) -> None:
    export, report = copy.folder / "export", copy.folder / "eval" / "test" / "report.json"
    (export / "spiece.model").unlink()
    ends(
        copy,
        "train",
        [str(copy.config)],
        2,
        "is finished, and damaged since: export/ (",
        "spiece.model",
        f"finished.json and {export}, and",
    )
    figures = report.read_text()
    shutil.rmtree(export)
    shutil.copytree(finished.folder / "export", export)
    report.write_text(figures.replace('"R@1": 0', '"R@1": 1', 1))
    ends(copy, "train", [str(copy.config)], 2, "damaged since: eval/test/report.json (it does not have the bytes that were written)")
    shutil.move(copy.folder / "checkpoints", copy.folder / "aside")
    ends(copy, "train", [str(copy.config)], 2, "restore it from a copy: the checkpoints that could make them again are gone")
    shutil.move(copy.folder / "aside", copy.folder / "checkpoints")
    (copy.folder / "finished.json").unlink()  # as the message says
    copy.finish()
    assert_same(copy, finished)
    assert "is finished:" in copy.finish()[0].output()


def test_a_folder_without_a_manifest_or_with_one_of_another_format_is_read_as_ever(copy: Run, tmp_path: Path) -> None:
    export = copy.folder / "export"
    (export / "manifest.json").write_text('{"name": "an app"}')
    ends(copy, "train", [str(copy.config), "name=other", f"model.base={export}", "train.max_steps=2"], 0)
    (export / "manifest.json").unlink()
    ends(copy, "train", [str(copy.config)], 0, "is finished:")

"""Two writers of one output: the second is refused at once; a kill leaves the old or the new, and the next start sweeps."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.bin_checkpoints import bin_folder
from tests.faults.runs import Run
from tests.nursery import Nursery, Trap
from tests.small_reranker_job import RerankerWorld
from train.engine.checkpoint import Checkpoints

WRITERS = {
    "export": Trap("train.siglip.export:write_plain", 1, 19),
    "soup": Trap("train.siglip.export:write_plain", 1, 19),
    "wise": Trap("train.siglip.export:write_plain", 1, 19),
    "eval": Trap("rerank.evaluation:write_report", 1, 19),
    "choices": Trap("eval.choices.report:write_choices", 1, 19),
    "compare": Trap("eval.compare.reports:compare", 1, 19),
    "answers": Trap("rerank.answers.output:write_answers", 1, 19),
    "convert": Trap("rerank.convert.hub_weights:write_as_safetensors", 1, 19),
    "convert_choices": Trap("eval.choices.layouts:read_choices", 1, 19),
}
"""In which function the first writer of each kind is held up."""


@pytest.mark.parametrize("writer", WRITERS)
def test_of_two_writers_of_one_output_the_second_is_refused_at_once(
    writer: str, nursery: Nursery, reranker_world: RerankerWorld, straight: dict[int, Run], tmp_path: Path
) -> None:
    world, run, out = reranker_world, straight[1].folder, str(tmp_path / "out" / "it")
    pictures = world.manifest.parent / "pictures"
    (tmp_path / "captions.txt").write_text("a red bar\n")
    row = {"image": "val-000.png", "caption": "a red bar", "false_captions": ["a blue bar"]}
    (tmp_path / "choices.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "order.json").write_text(json.dumps({"0": {"filename": "a.png", "caption": "a red bar", "negative_caption": "bar a red"}}))
    (tmp_path / "out").mkdir()
    shutil.copy(pictures / "val-000.png", tmp_path / "out" / "a.png")
    if writer == "convert":
        bin_folder(world.blip, tmp_path / "bin")
    base = ["--model", str(world.base)]
    module, arguments = {
        "export": ("train.export", [str(run), "--output", out]),
        "soup": ("train.soup", [str(run), str(world.base), "--output", out]),
        "wise": ("train.wise", [str(run), "--output", out, "--alphas", "1", "--keep", "1"]),
        "eval": ("eval", [*base, "--data", str(world.manifest), "--split", "test", "--output", out]),
        "choices": ("eval.choices", [*base, "--data", f"{tmp_path}/choices.jsonl", "--image-root", str(pictures), "--output", out]),
        "compare": ("eval.compare", [str(run), str(run), "--output", out]),
        "answers": ("rerank", [*base, "--images", str(pictures), "--captions", f"{tmp_path}/captions.txt", "--output", f"{out}.csv"]),
        "convert": ("rerank.convert", [f"{tmp_path}/bin", "--output", out]),
        "convert_choices": (
            "eval.convert_choices",
            ["--layout", "sugarcrepe", "--source", f"{tmp_path}/order.json", "--images", f"{tmp_path}/out", "--output", f"{out}.jsonl"],
        ),
    }[writer]
    first = nursery.start(module, arguments, trap=WRITERS[writer])
    first.wait_until(first.stopped)
    second = nursery.start(module, arguments)
    assert second.wait() == 2, second.output()
    assert f"is being written by process {first.pid} on {socket.gethostname()}; wait for it" in second.output()
    assert "Traceback" not in second.output()
    first.kill(18)
    assert first.wait() == 0, first.output()
    third = nursery.start(module, arguments)
    assert third.wait() == (2 if writer == "convert" else 0), third.output()  # a conversion replaces nothing
    assert list((tmp_path / "out").rglob(".*")) == []


KILLS = {
    "before anything is written": Trap("train.siglip.export:write_plain", 1),
    "weights written": Trap("train.siglip.export:write_plain", 1, after=True),
    "all written": Trap("eval.atomic:apply_umask", 1),
    "not exchanged yet": Trap("eval.atomic:_exchange", 1),
    "exchanged, the old not removed": Trap("eval.atomic:_exchange", 1, after=True),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_of_an_export_leaves_the_old_or_the_new(
    moment: str, nursery: Nursery, straight: dict[int, Run], tmp_path: Path
) -> None:
    run, out = straight[1].folder, tmp_path / "out"
    first, *_, last = Checkpoints(run / "checkpoints").steps()
    assert nursery.start("train.export", [str(run), "--output", str(tmp_path / "new"), "--checkpoint", str(last)]).wait() == 0
    assert nursery.start("train.export", [str(run), "--output", str(out), "--checkpoint", str(first)]).wait() == 0
    old, new = ((folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "new"))
    assert old != new
    arguments = [str(run), "--output", str(out), "--checkpoint", str(last)]
    child = nursery.start("train.export", arguments, trap=KILLS[moment])
    assert child.wait() == -9, child.output()
    assert (out / "model.safetensors").read_bytes() == (new if "old" in moment else old)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "new").iterdir())
    assert len(list(tmp_path.glob(".out.*"))) == 2, "the lock, and what was written aside"
    child = nursery.start("train.export", arguments)
    assert child.wait() == 0, child.output()
    assert (out / "model.safetensors").read_bytes() == new and list(tmp_path.glob(".*")) == []

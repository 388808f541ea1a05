"""train/engine/metrics_log.py: metrics.jsonl is a straight run's after any resume, and no tracker can ever stop a run."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image

from eval.metrics.stage_metrics import METRICS
from train.config.job import JobConfig
from train.engine.metrics_log import FIGURE_COLUMNS, MetricsLog, Trackers, figure_rows

ROOT = Path(__file__).parents[4]


def write(folder: Path, *numbers: int) -> None:
    log = MetricsLog(folder)
    log.open_at(0)
    for number in numbers:
        log.write("step", number, {"loss": number / 7})
    log.sync()
    log.close()


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_beyond_the_checkpoint_move_away(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    log = MetricsLog(tmp_path)
    assert log.open_at(2) == 2 and log.num_lines == 2
    log.write("step", 3, {"loss": 0.0})
    log.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3] and steps(tmp_path / "metrics.replaced.jsonl") == [3, 4]
    assert log.open_at(1) == 2
    assert steps(tmp_path / "metrics.replaced.jsonl") == [3, 4, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.replaced.jsonl"]


@pytest.mark.parametrize("keep", [2, 3, 9])
def test_a_torn_last_line_is_dropped(tmp_path: Path, keep: int) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    log = MetricsLog(tmp_path)
    assert log.open_at(keep) == 0 and log.num_lines == 2
    log.write("step", 3, {})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    assert not (tmp_path / "metrics.replaced.jsonl").exists()


def test_nothing_is_rewritten_when_all_lines_stay(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    assert MetricsLog(tmp_path).open_at(2) == 0
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before


def test_damage_to_lines_between_a_kill_and_a_resume_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, 1, 2, 3)
    whole, digest = path.read_bytes(), hashlib.sha256(path.read_bytes()).hexdigest()
    lines = whole.splitlines(keepends=True)
    damages = {
        whole: "",
        whole.replace(b"0.2857", b"0.2957"): "holds other bytes in its lines",
        whole.replace(b'"step": 2', b'"step\xff 2'): "holds no JSON in line 2",
        b"".join([lines[0], b"not JSON\n", lines[2]]): "holds no JSON in line 2",
        b"".join(lines[:2]): "lacks 1 line(s)",
        whole.replace(b'"step": 3', b'"st\rp": 3'): "holds no JSON in line 3",
    }
    for number, (damaged, expected) in enumerate(damages.items()):
        path.write_bytes(damaged)
        log = MetricsLog(tmp_path)
        assert log.open_at(3, digest) == 0 and log.damage == expected, number
        log.write("step", 4, {})
        log.close()
        assert path.read_bytes().startswith(damaged), "the run goes on"
        assert log.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        log = MetricsLog(tmp_path)
        log.open_at(4, hashlib.sha256(path.read_bytes()).hexdigest())
        assert log.damage == "", "it is told once"
    path.write_bytes(whole)
    (old := MetricsLog(tmp_path)).open_at(3)
    assert old.damage == "", "a checkpoint of an earlier version does not say"


def test_a_full_disk_names_the_file_whenever_it_strikes(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path)
    log._file = (tmp_path / "metrics.jsonl").open("ab")
    for strike in (lambda: log.write("step", 1, {}), log.sync, log.close):
        with pytest.raises(OSError, match="No space left on device") as caught:
            strike()
        assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_numbers_come_back_as_they_were_and_json_stays_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.open_at(0)
    log.write("step", 1, {"loss": 0.1 + 0.2, "text": "ä\r\n\u2028", "deep": {"scale": float("inf"), "bias": float("nan")}})
    raw = (tmp_path / "metrics.jsonl").read_bytes()
    assert raw.count(b"\n") == 1 and raw.endswith(b"\n")
    record = json.loads(raw, parse_constant=lambda name: pytest.fail(name))
    assert record == {"event": "step", "step": 1, "loss": 0.30000000000000004, "text": "ä\r\n\u2028", "deep": {"scale": None, "bias": None}}


class FakeWandb:
    """Stands for the module; fails where it is told to."""

    def __init__(self, failing: str = "", error: BaseException | None = None) -> None:
        self.failing, self.error = failing, error or RuntimeError("the backend is gone")
        self.started: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.axes: list[tuple[Any, ...]] = []
        self.num_finished = 0
        self.Settings = SimpleNamespace

    def _maybe(self, name: str) -> None:
        if self.failing == name:
            raise self.error

    def init(self, **keys: Any) -> "FakeWandb":
        self._maybe("init")
        self.started = keys
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self._maybe("define_metric")
        self.axes.append((name, step_metric))

    def log(self, record: dict[str, Any], step: int | None = None) -> None:
        self._maybe("log")
        assert step is None
        self.logged.append(record)

    def finish(self) -> None:
        self._maybe("finish")
        self.num_finished += 1


def config(tmp_path: Path, **keys: Any) -> JobConfig:
    train = {"max_steps": 2, "batch_size": 2, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    record = {"name": "job", "runs_folder": str(tmp_path), "model": {"base": "b"}, "data": {"source": "s"}, "train": train}
    (tmp_path / "job").mkdir(exist_ok=True)
    return JobConfig.model_validate(record | keys)


def tracked(
    monkeypatch: pytest.MonkeyPatch, fake: Any, tmp_path: Path, wandb: Any = None, **more: Any
) -> tuple[Trackers, list[str]]:
    """Trackers with a wandb of ours."""
    PartialState()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    warnings: list[str] = []
    return Trackers(config(tmp_path, wandb=wandb), warnings.append, **more), warnings


def test_numbers_are_mirrored_under_their_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeWandb()
    target, warnings = tracked(monkeypatch, fake, tmp_path, {"mode": "offline", "project": "p"})
    target.write("eval", 3, {"split": "val", "image_to_text": {"R@1": 0.5}, "best": True, "list": [1]})
    target.write("watch", 3, {"name": "old", "delta": -0.5})
    target.close()
    expected = [{"eval/image_to_text/R@1": 0.5, "eval/best": True, "train/step": 3}, {"watch/old/delta": -0.5, "train/step": 3}]
    assert fake.logged == expected and fake.axes == [("train/step", None), ("*", "train/step")]
    assert (fake.started["mode"], fake.started["project"], fake.started["name"]) == ("offline", "p", "job") and fake.num_finished == 1
    assert warnings == []


def test_a_resumed_run_is_the_same_run_there_and_another_of_its_name_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = []
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        fake = FakeWandb()
        tracked(monkeypatch, fake, tmp_path / folder, {})[0].close()
        assert fake.started["resume"] == "allow"
        ids.append(fake.started["id"])
    assert ids[0] == ids[1] != ids[2] and json.loads((tmp_path / "one" / "job" / "tracking.json").read_text()) == {"wandb": ids[0]}
    fake = FakeWandb()
    (tmp_path / "new there").mkdir()
    tracked(monkeypatch, fake, tmp_path / "new there", {}, step=4, is_old=True)[0].close()
    assert fake.started["id"] not in ("job", *ids), "a tracker that is added later begins a run of its own"
    fake = FakeWandb()
    (tmp_path / "old" / "job" / "wandb").mkdir(parents=True)
    tracked(monkeypatch, fake, tmp_path / "old", {}, step=4, is_old=True)[0].close()
    assert fake.started["id"] == "job"  # as versions before called it


def test_without_a_tracker_nothing_is_even_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, warnings = tracked(monkeypatch, None, tmp_path)  # importing None raises
    target.write("step", 1, {"loss": 1.0})
    target.close()
    assert warnings == [] and not (tmp_path / "job" / "tracking.json").exists()


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no key"), OSError("no network"), BrokenPipeError()])
def test_whatever_fails_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str, error: BaseException) -> None:
    fake = FakeWandb(failing, error)
    target, warnings = tracked(monkeypatch, fake, tmp_path, {})
    for step in (1, 2, 3):
        target.write("step", step, {"loss": 1.0})
    target.close()
    target.close()
    assert len(warnings) == 1 and type(error).__name__ in warnings[0] and "metrics.jsonl has everything" in warnings[0]


def test_not_installed_or_exiting_is_no_reason_to_stop_and_ctrl_c_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(tracked(monkeypatch, None, tmp_path, {})[1]) == 1
    assert len(tracked(monkeypatch, FakeWandb("init", SystemExit(1)), tmp_path, {})[1]) == 1
    with pytest.raises(KeyboardInterrupt):
        tracked(monkeypatch, FakeWandb("init", KeyboardInterrupt()), tmp_path, {})


def test_one_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    PartialState()
    fake, warnings = FakeWandb(), list[str]()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("trackio", "torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    target = Trackers(config(tmp_path, tracking=["trackio", "tensorboard", "wandb"]), warnings.append)
    target.write("step", 1, {"loss": 1.0})
    assert fake.logged == [{"step/loss": 1.0, "train/step": 1}]
    assert [line.split()[0] for line in warnings] == ["trackio", "tensorboard"]


def test_tensorboard_goes_on_in_one_folder_without_what_was_taken_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    PartialState()
    run, warnings = config(tmp_path, tracking=["tensorboard"]), list[str]()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "curves.png")
    first = Trackers(run, warnings.append)
    for step in (1, 2, 3):
        first.write("step", step, {"loss": float(step)})
    first.close()
    again = Trackers(run, warnings.append, step=1)  # from the checkpoint of step 1
    again.write("step", 2, {"loss": 20.0})
    again.table("final/figures", ("stage", "R@1"), [["a|b", 0.51234]], 2)
    again.picture("curves", tmp_path / "curves.png", 2)
    again.picture("curves", tmp_path / "none.png", 2)
    again.close()
    found = accumulator.EventAccumulator(str(tmp_path / "job" / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("step/loss")] == [(1, 1.0), (2, 20.0)]
    text = found.Tensors("final/figures/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["| stage | R@1 |", "| --- | --- |", "| a\\|b | 0.5123 |"]
    assert (found.Images("curves")[0].width, found.Images("curves")[0].height, warnings) == (6, 4, [])


def test_trackio_goes_on_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    script = """
import sys
from pathlib import Path
from accelerate import PartialState
from tests.unit.train.engine.test_metrics_log import config
from train.engine.metrics_log import Trackers

PartialState()
for step in (1, 2):
    target = Trackers(config(Path(sys.argv[1]), tracking=["trackio"]), print, step=step - 1)
    target.write("step", step, {"loss": step / 4})
    target.table("final/figures", ["stage"], [["tuned"]], step)
    target.close()
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}  # which is read when it is imported
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "siglip-tuner.db")) as rows:
        found = rows.execute("select run_name, step, cast(metrics as text) from metrics order by id").fetchall()
    assert [(name, step) for name, step, _ in found] == [("job", 1), ("job", 1), ("job", 2), ("job", 2)]
    assert json.loads(found[2][2]) == {"step/loss": 0.5} and "tuned" in found[3][2]


def test_the_final_table_has_a_row_for_each_stage_and_direction() -> None:
    metrics = dict.fromkeys(METRICS, 0.5)
    record = {"stages": {"base": {"image_to_text": metrics, "text_to_image": metrics | {"R@1": 0.25}}}}
    rows = figure_rows(record)
    assert FIGURE_COLUMNS[:3] == ("stage", "direction", "R@1") and all(len(row) == len(FIGURE_COLUMNS) for row in rows)
    assert [row[:3] for row in rows] == [["base", "image_to_text", 0.5], ["base", "text_to_image", 0.25]]

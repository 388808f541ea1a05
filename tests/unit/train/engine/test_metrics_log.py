"""train/engine/metrics_log.py: metrics.jsonl is a straight run's after any resume, and Weights & Biases can never stop a run."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.config.job import JobConfig
from train.engine.metrics_log import MetricsLog, WandbMirror


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
        self.num_finished = 0
        self.Settings = SimpleNamespace

    def _maybe(self, name: str) -> None:
        if self.failing == name:
            raise self.error

    def init(self, **keys: Any) -> "FakeWandb":
        self._maybe("init")
        self.started = keys
        return self

    def log(self, record: dict[str, Any]) -> None:
        self._maybe("log")
        self.logged.append(record)

    def finish(self) -> None:
        self._maybe("finish")
        self.num_finished += 1


def mirror(monkeypatch: pytest.MonkeyPatch, fake: Any, tmp_path: Path, wandb: Any) -> tuple[WandbMirror, list[str]]:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train = {"max_steps": 2, "batch_size": 2, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    record = {"name": "job", "runs_folder": str(tmp_path), "model": {"base": "b"}, "data": {"source": "s"}, "train": train, "wandb": wandb}
    warnings: list[str] = []
    return WandbMirror(JobConfig.model_validate(record), warnings.append), warnings


def test_numbers_are_mirrored_under_their_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeWandb()
    target, warnings = mirror(monkeypatch, fake, tmp_path, {"mode": "offline", "project": "p"})
    target.write("eval", 3, {"split": "val", "image_to_text": {"R@1": 0.5}, "best": True})
    target.close()
    assert fake.logged == [{"eval/image_to_text/R@1": 0.5, "eval/best": True, "train_step": 3}]
    assert (fake.started["mode"], fake.started["project"], fake.started["id"]) == ("offline", "p", "job") and fake.num_finished == 1
    assert warnings == []


def test_without_the_section_nothing_is_even_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, warnings = mirror(monkeypatch, None, tmp_path, None)  # importing None raises
    target.write("step", 1, {"loss": 1.0})
    target.close()
    assert warnings == []


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no key"), OSError("no network"), BrokenPipeError()])
def test_whatever_fails_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str, error: BaseException) -> None:
    fake = FakeWandb(failing, error)
    target, warnings = mirror(monkeypatch, fake, tmp_path, {})
    for step in (1, 2, 3):
        target.write("step", step, {"loss": 1.0})
    target.close()
    target.close()
    assert len(warnings) == 1 and type(error).__name__ in warnings[0] and "metrics.jsonl has everything" in warnings[0]


def test_not_installed_or_exiting_is_no_reason_to_stop_and_ctrl_c_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(mirror(monkeypatch, None, tmp_path, {})[1]) == 1
    assert len(mirror(monkeypatch, FakeWandb("init", SystemExit(1)), tmp_path, {})[1]) == 1
    with pytest.raises(KeyboardInterrupt):
        mirror(monkeypatch, FakeWandb("init", KeyboardInterrupt()), tmp_path, {})

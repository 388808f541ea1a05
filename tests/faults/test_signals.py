"""SIGHUP and SIGUSR1 stop as SIGTERM does, a second Ctrl-C ends at once, and no command answers a signal with a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.runs import Run, assert_same, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from tests.unit.house.test_commands import COMMANDS

ROOT = Path(__file__).parents[2]
SLOW_PICTURES = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from eval.dataset.retrieval_set import RetrievalSet
RetrievalSet.load_image = lambda *_: time.sleep(600)
from eval.__main__ import main
main()
"""
HUP, USR1 = signal.SIGHUP, signal.SIGUSR1
PLACES = {
    "before the first checkpoint": Trap("train.engine.loop:sweep", 1, HUP),
    "in a step": Trap("train.model.grad_cache:image_features", 4, USR1),
    "in an evaluation": Trap("train.siglip.loop:retrieve", 2, HUP),
    "in a mining": Trap("train.siglip.mining:mine", 2, USR1),
    "while a checkpoint is written": Trap("train.engine.checkpoint:save_file", 6, HUP),
    "in the final measurement": Trap("rerank.combine.embedded_sets:embed", 2, USR1),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_dropped_ssh_and_a_warning_of_slurm_end_with_a_checkpoint(run: Run, straight: dict[int, Run], place: str) -> None:
    (child,) = run.start(trap=PLACES[place])
    assert child.wait() == 143, child.output()
    assert "the same command goes on from there" in child.output() and "Traceback" not in child.output()
    run.finish()
    assert_same(run, straight[1])


@pytest.mark.parametrize("number", [HUP, USR1])
def test_they_end_a_rerankers_tuning_with_a_checkpoint(
    nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path, number: signal.Signals
) -> None:
    run = Run.make(nursery, reranker_world, tmp_path)
    (child,) = run.start(trap=Trap("train.reranker.step:MatchStepper.train_step", 3, number))
    assert child.wait() == 143 and "stopped: after step 3" in child.output() and "Traceback" not in child.output()
    assert "resuming job at step 3" in run.finish()[0].output()


def test_nohup_still_keeps_a_run_from_sighup(run: Run) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "train", str(run.config)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and steps_taken(run.folder) < 2:
        time.sleep(0.05)
    process.send_signal(HUP)
    assert process.wait(240) == 0 and steps_taken(run.folder) == 9


def test_a_second_ctrl_c_ends_at_once_and_names_the_checkpoint_that_remains(pair: Run) -> None:
    """The other process does not answer, so the step can never end: what waits for it is not Python."""
    children = pair.start(traps={1: Trap("train.model.grad_cache:image_features", 5, signal.SIGSTOP)})
    children[1].wait_until(children[1].stopped)
    children[0].wait_until(lambda: steps_taken(pair.folder) == 4)
    children[0].kill(signal.SIGINT)
    time.sleep(0.3)  # two signals that come together are one
    children[0].kill(signal.SIGINT)
    assert children[0].wait() == 130, children[0].output()
    assert f"newest checkpoint, {pair.folder}/checkpoints/step-4" in children[0].output() and "Traceback" not in children[0].output()
    children[1].kill(signal.SIGKILL)
    children[1].wait()


WITH_TORCH = [name for name in COMMANDS if name not in ("eval.compare.__main__", "eval.convert_choices", "train.launch.runs")]
NUMBERS = [("eval.__main__", number) for number in (signal.SIGTERM, HUP, USR1)] + [(name, signal.SIGINT) for name in WITH_TORCH]


@pytest.mark.parametrize(("module", "number"), NUMBERS)
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path: Path, module: str, number: signal.Signals) -> None:
    """A torch in front of ours, which sends the signal; commands that import it only when they know what to do are told to do something."""
    (tmp_path / "torch.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nimport time\ntime.sleep(60)\n")
    words = COMMANDS[module][1]
    done = subprocess.run(
        [sys.executable, "-m", module.removesuffix(".__main__"), *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = "interrupted" if number == signal.SIGINT else f"told to by {number.name}"
    assert (done.returncode, done.stderr) == (130 if number == signal.SIGINT else 143, f"stopped: {said}\n")


def commands(world: RerankerWorld, run: Path, folder: Path) -> dict[str, tuple[str, list[str], str]]:
    """Command -> (module, arguments, where it is interrupted)."""
    output = ["--output", str(folder / "output")]
    data = ["--data", str(world.manifest), "--split", "val"]
    pictures = str(world.manifest.parent / "pictures")
    mining = str(SmallWorld(world.manifest, world.base).write_config(folder / "mining"))
    words = folder / "captions.txt"
    words.write_text("a red circle\na blue bar\n")
    return {
        "eval": ("eval", ["--model", str(world.base), *data, *output], "eval.encoder.encoder:image_features"),
        "eval with a reranker": (
            "eval",
            ["--model", str(world.base), *data, *output, "--rerank", str(world.blip), "--top-k", "4"],
            "rerank.scoring.pair_scores:_score_image",
        ),
        "rerank": (
            "rerank",
            ["--model", str(world.base), "--images", pictures, "--captions", str(words), "--output", str(folder / "answers.parquet")],
            "eval.encoder.encoder:image_features",
        ),
        "mining": ("train.mining", [mining], "train.siglip.mining:mine"),
        "export": ("train.export", [str(run), *output], "train.siglip.export:plain_state"),
        "soup": ("train.soup", [str(world.base), str(run / "export"), *output], "train.soup.ingredients:hash_weights"),
        "wise": ("train.wise", [str(run), *output], "eval.encoder.encoder:image_features"),
    }


NAMES = ["eval", "eval with a reranker", "rerank", "mining", "export", "soup", "wise"]


INTERRUPTED = [*((name, signal.SIGINT) for name in NAMES), ("eval", USR1), ("rerank", HUP), ("mining", USR1)]


@pytest.mark.parametrize(("name", "number"), INTERRUPTED)
def test_a_signal_ends_a_command_with_one_line(
    nursery: Nursery, reranker_world: RerankerWorld, straight: dict[int, Run], tmp_path: Path, name: str, number: signal.Signals
) -> None:
    module, arguments, function = commands(reranker_world, straight[1].folder, tmp_path)[name]
    child = nursery.start(module, arguments, trap=Trap(function, 1, number))
    assert child.wait() == (130 if number == signal.SIGINT else 143), child.output()
    said = "interrupted" if number == signal.SIGINT else f"told to by {number.name}"
    assert child.output().splitlines()[-1] == f"stopped: {said}" and "Traceback" not in child.output()


def test_ctrl_c_reaches_workers_too_and_they_are_silent(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    """As a terminal sends it: to the command and to the processes that decode for it. They are gone when it is."""
    words = commands(reranker_world, tmp_path, tmp_path)["eval with a reranker"][1]
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW_PICTURES, *words, "--num-workers", "2"],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while started.poll() is None and len(psutil.Process(started.pid).children()) < 2:
        time.sleep(0.005)  # the sooner after their birth, the better
    workers = psutil.Process(started.pid).children()
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130 and said.replace("\r", "\n").splitlines()[-1] == "stopped: interrupted"
    assert "Traceback" not in said and "KeyboardInterrupt" not in said and workers
    assert not any(worker.is_running() for worker in workers)

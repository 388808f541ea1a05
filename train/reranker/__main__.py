"""python -m train.reranker CONFIG.yaml [key.path=value ...] [--check-images]

Tunes the matcher that reranks: BLIP's matching head, or adapters beside it, or all of it, on your pairs, with negatives mined by your tuned
SigLIP. The same command again resumes; a finished run prints its figures. Exit codes as of `python -m train`.
Several processes: LAUNCH_ARGS="..." ./launch.sh CONFIG.yaml, or accelerate launch -m train.reranker CONFIG.yaml.
"""

import argparse
from pathlib import Path
from typing import Any

from eval.errors import UserError
from train.config.reranker import MARKER, is_reranker
from train.engine.command import carry_out, end_with, exit_code_of

"""The key of a configuration that says which kind of run it describes."""


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m train.reranker", description="Tune a BLIP matcher on labelled (image, caption) pairs.")
    parser.add_argument("config", help="YAML file, e.g. configs/reranker-demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of the file")
    parser.add_argument("--check-images", action="store_true", help="decode every picture first, name all that fail, then stop")
    asked = parser.parse_intermixed_args(arguments)
    return exit_code_of(lambda: run_reranker(asked))


def run_reranker(asked: Any) -> int:
    """Carry out what the arguments ask for; returns the exit code.

    Raises:
        UserError, NotFinite, Stopped, OSError: see train/engine/command.py.
    """
    from train.config.load import load_run_config, read_yaml
    from train.config.reranker import RerankerConfig
    from train.engine.command import silence

    silence()
    if not is_reranker(read_yaml(Path(asked.config))) and not any(text.startswith(f"{MARKER}=") for text in asked.overrides):
        raise UserError(
            f"{asked.config}: expected the key {MARKER!r}, the tuned SigLIP whose confusions are mined, which marks a reranker's tuning; "
            "found none. If the file describes the tuning of SigLIP itself, take python -m train; else see configs/reranker-demo.yaml"
        )
    config = load_run_config(RerankerConfig, asked.config, asked.overrides)
    if asked.check_images:
        from train.data.check_images import check_images
        from train.reranker.job import load_reranker_data

        return check_images(load_reranker_data(config), config.data.num_workers)
    return carry_out(RerankerTuning(config))


class RerankerTuning:
    """The tuning of a reranker (a `train.engine.command.Kind`)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def start(self) -> Any:
        """Accelerator and processes."""
        from train.engine.distributed import start_distributed

        return start_distributed(self.config.train, lambda processes: None)

    def is_finished(self) -> bool:
        """Whether the run is through."""
        from train.reranker.finish import is_reranker_finished

        return is_reranker_finished(self.config)

    def show_finished(self) -> None:
        """Print the figures of a run that is."""
        from train.reranker.finish import show_reranker

        show_reranker(self.config)

    def begin(self, accelerator: Any, processes: Any, signals: Any) -> Any:
        """The loop."""
        from train.reranker.job import load_reranker_data, prepare_reranker
        from train.reranker.loop import RerankerLoop

        splits = processes.together(lambda: load_reranker_data(self.config))
        return RerankerLoop(prepare_reranker(self.config, splits, accelerator, processes), signals)

    def finish(self, loop: Any, state: Any) -> None:
        """Export, evaluate, report."""
        from train.reranker.finish import finish_reranker

        finish_reranker(loop.job, state, loop.leave_final_if_asked)


if __name__ == "__main__":
    end_with(run)

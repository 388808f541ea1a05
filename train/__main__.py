"""python -m train CONFIG.yaml [key.path=value ...] [--check-images]

A file with the key `miner` describes the tuning of a reranker: what `python -m train.reranker` does with it.

Exit codes: 0 done · 2 bad configuration or data · 3 no readable checkpoint to resume from · 4 could not write ·
5 loss or gradient not finite · 143 stopped by SIGTERM (130: by Ctrl-C) with a checkpoint written.
"""

import argparse
from pathlib import Path
from typing import Any

from train.engine.command import carry_out, end_with, exit_code_of


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Tune SigLIP on labelled (image, caption) pairs.")
    parser.add_argument("config", help="YAML file, e.g. configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of the file")
    parser.add_argument(
        "--check-images", action="store_true", help="decode every picture first, name all that fail and all equal ones, then stop"
    )
    asked = parser.parse_intermixed_args(arguments)
    return exit_code_of(lambda: _run(asked))


def _run(asked: Any) -> int:
    from train.config.load import load_config, read_yaml
    from train.config.reranker import is_reranker
    from train.engine.command import silence
    from train.reranker.__main__ import run_reranker

    silence()
    if is_reranker(read_yaml(Path(asked.config))):
        return run_reranker(asked)
    config = load_config(asked.config, asked.overrides)
    if asked.check_images:
        from eval.choices.choice_set import read_choices
        from train.data.check_images import check_images
        from train.data.splits import load_data

        return check_images(load_data(config), config.data.num_workers, [read_choices(path) for path in config.choices or ()])
    return carry_out(_Tuning(config))


class _Tuning:
    """The tuning of SigLIP (a `train.engine.command.Kind`)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def start(self) -> Any:
        from train.siglip.setup import start_processes

        return start_processes(self.config)

    def is_finished(self) -> bool:
        from train.siglip.finish import is_finished

        return is_finished(self.config)

    def show_finished(self) -> None:
        from train.siglip.finish import show_finished

        show_finished(self.config)

    def begin(self, accelerator: Any, processes: Any, signals: Any) -> Any:
        from train.data.splits import load_data
        from train.siglip.loop import Loop
        from train.siglip.setup import prepare

        splits = processes.together(lambda: load_data(self.config))
        return Loop(prepare(self.config, splits, accelerator, processes), signals)

    def finish(self, loop: Any, state: Any) -> None:
        from train.siglip.finish import finish

        finish(loop.job, state, loop.leave_final_if_asked)


def main() -> None:
    """Run, and exit as launch.sh expects it."""
    end_with(run)


if __name__ == "__main__":
    main()

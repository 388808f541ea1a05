"""python -m train CONFIG.yaml [key.path=value ...] [--check-images]

Exit codes: 0 done · 2 bad configuration or data · 3 no readable checkpoint to resume from · 4 could not write ·
5 loss or gradient not finite · 143 stopped by SIGTERM (130: by Ctrl-C) with a checkpoint written.
"""

import argparse
import os
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from eval.errors import UserError


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Tune SigLIP on labelled (image, caption) pairs.")
    parser.add_argument("config", help="YAML file, e.g. configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of the file")
    parser.add_argument(
        "--check-images", action="store_true", help="decode every picture first, name all that fail and all equal ones, then stop"
    )
    asked = parser.parse_intermixed_args(arguments)
    from train.step import NotFinite
    from train.stopping import ProcessesLost, Stopped

    try:
        return _run_job(asked)
    except UserError as error:
        return _say(str(error), error.exit_code, is_shared=error.is_shared)
    except NotFinite as error:
        return _say(str(error), error.exit_code)
    except Stopped as error:
        return _say(str(error), error.exit_code, "stopped")
    except ProcessesLost as error:
        traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return _say("interrupted", 130, "stopped")
    except OSError as error:
        traceback.print_exc()
        words = f"could not write (or read): {error}. What was committed before is whole; make room and run the same command again"
        return _say(words, 4, is_shared=False)


def _run_job(asked: Any) -> int:
    from transformers.utils import logging

    from train.config_file import load_config
    from train.final import finish, is_finished, show_finished
    from train.job import load_data, prepare, start_processes
    from train.loop import Loop
    from train.run_folder import claim_folder
    from train.stopping import ProcessesLost, Stopped, StopSignals, is_loss_of_processes

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # workers touch no thread of their parent's
    config = load_config(asked.config, asked.overrides)
    if asked.check_images:
        from eval.choices.choice_set import read_choices
        from train.check import check_images

        return check_images(load_data(config), config.data.num_workers, [read_choices(path) for path in config.choices or ()])
    with StopSignals() as signals:
        accelerator, processes = start_processes(config)
        lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
        try:
            if processes.from_main(lambda: is_finished(config)):
                if processes.is_main:
                    print(f"{config.run_folder} is finished:")
                    show_finished(config)
                return 0
            loop: Loop | None = None
            try:
                job = prepare(config, processes.together(lambda: load_data(config)), accelerator, processes)
                loop = Loop(job, signals)
                finish(job, loop.run(), loop.leave_final_if_asked)
            except RuntimeError as error:
                # The main process was told to stop and has left, while this one, told the same, waited for it.
                if signals.asked and not processes.is_main:
                    raise Stopped(signals.exit_code, loop.state.step if loop is not None else 0) from error
                if is_loss_of_processes(error):
                    raise ProcessesLost(processes.rank, str(error).splitlines()[0]) from error
                raise
            return 0
        finally:
            if lock is not None:
                lock.close()


def _say(message: str, code: int, word: str = "error", *, is_shared: bool = True) -> int:
    """Print why and return the code: on the main process, and on another where it alone met it."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        print(f"{word}: {message}", file=sys.stderr, flush=True)
    elif not is_shared:
        print(f"{word} on process {rank}, machine {socket.gethostname()}: {message}", file=sys.stderr, flush=True)
    return code


def main() -> None:
    """Run, leave the exit code where launch.sh finds it (accelerate turns every code into 1), and exit."""
    code = 1
    try:
        code = run(sys.argv[1:])
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    finally:
        prefix = os.environ.get("TRAIN_EXIT_FILE")
        if prefix:
            path = Path(f"{prefix}.{os.environ.get('RANK', '0')}")
            path.write_text(f"{code}\n", encoding="utf-8")
    _end_processes()
    sys.exit(code)


def _end_processes() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""python -m train.mining CONFIG.yaml [key.path=value ...]: mine with the base model of a configuration, without training.

Writes runs/NAME/negatives/HASH.parquet and its sheet, HASH.json and HASH.html.
"""

import sys

from eval.errors import UserError
from eval.first_stage import progress_bar
from train.config import JobConfig
from train.config_file import load_config
from train.denoising import load_matcher
from train.image_mining import mine_images
from train.job import load_data, prepare, start_processes
from train.mining import Refresh, mine
from train.mining_page import write_sheet
from train.mining_schedule import images_due
from train.negatives import write_negatives
from train.run_folder import claim_folder


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        return _mine(load_config(arguments[0], arguments[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: could not write: {error}", file=sys.stderr)
        return 4


def _mine(config: JobConfig) -> int:
    if config.mining is None:
        raise UserError("mining: the configuration has none (null); give at least mining.mine_every_steps")
    accelerator, processes = start_processes(config)
    lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
    job = prepare(config, processes.together(lambda: load_data(config)), accelerator, processes)
    step = config.mining.start_step
    refresh = Refresh(config.seed, step, images_due(config.mining, job.order, step, config.train.max_steps))
    with progress_bar("mining", job.train_set, processes) as bar:
        mine_form = mine_images if config.mining.form == "images" else mine
        negatives, sheet = mine_form(
            job.tuned.siglip,
            job.tuned.inputs,
            job.pool,
            config.mining,
            data_sha256=job.data_sha256,
            refresh=refresh,
            matcher=load_matcher(config, accelerator.device),
            folder=job.folder / "negatives",
            processes=processes,
            num_workers=config.data.num_workers,
            truth=job.truth,
            on_progress=bar.update,
        )
    if processes.is_main:
        path = job.folder / "negatives" / f"{negatives.name}.parquet"
        write_negatives(path, negatives, job.pool)
        shown = write_sheet(path.parent, sheet, negatives, job.pool, job.truth)
        print("\n".join(sheet.lines()) + f"\nwritten to {path}; with examples: {shown}")
    if lock is not None:
        lock.close()
    return 0

"""New."""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from eval.errors import UserError
from eval.process_group import joined_processes
from eval.processes import Processes


def run_command(run: Callable[[Processes, torch.device], Any]) -> int:
    """Run the work of an evaluation command on this process; returns the exit code, and the main process prints what a person can mend."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with joined_processes() as (processes, device):
            run(processes, device)
    except UserError as error:
        if is_main_by_rank():
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def is_main_by_rank() -> bool:
    """True for the process that prints, also before the processes have come together."""
    return os.environ.get("RANK", "0") == "0"

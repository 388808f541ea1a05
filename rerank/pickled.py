"""Weights in torch's pickled form, read without running anything that a pickle may hold."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from eval.errors import UserError


def read_pickled(path: Path) -> Any:
    """What a .pth, .pt or .bin holds: tensors, numbers, texts, and containers of them.

    Read with `weights_only`, and never without: a pickle with anything else in it could run any command as it is opened. The tensors
    of a file in torch's present form stay on disk until they are used.

    Raises:
        UserError: the file holds another object, which is named; or it is not there, is torn, or is of another form.
    """
    is_zip = path.is_file() and zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        objects = _objects(path, str(error), is_zip)
        if objects:
            raise UserError(
                f"{path} was not read: it holds {', '.join(objects)}, and expected were tensors, numbers and texts alone. Unpickling "
                "another object can run any command, so there is no switch for it. Ask the file's maker for the weights alone, or "
                'where you trust it load it in a sandbox and save those: torch.save({"model": content["model"]}, NEW_FILE)'
            ) from error
        raise UserError(f"{path} is no file of torch.save: {_first_line(error)}") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise UserError(f"{path} could not be read: {_first_line(error)}. Fetch or copy the file again") from error


def _objects(path: Path, message: str, is_zip: bool) -> list[str]:
    """Names of what the pickle would have called; found by reading its opcodes, or else in torch's message."""
    named = re.findall(r"(?:GLOBAL |Unsupported class |builtin )([\w.]+)", message)
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path)) or named if is_zip else named
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return named


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]

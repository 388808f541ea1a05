"""Cache of embeddings on this machine: what unchanged weights make of an unchanged set is made once, whoever asks for it.

A file holds float32 rows and their SHA-256, in the hub's cache for assets (HF_ASSETS_CACHE), and is named by a hash of all that decides the
bits: weights, config and input settings of the tower, captions or pictures (files by path, size and times of the last changes), device,
threads, instruction set, versions. So what is read is what would be made. A damaged file is made again, and a line says so. The cache is
bounded: what was used longest ago goes first. Only plain SigLIP towers of transformers are cached: what adapters, a compiler or another
runtime compute does not follow from the weights alone. Shape letters: N rows, D width.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import SiglipModel

from eval.atomic import replace_files, sweep
from eval.dataset.images import ImageError, decoders
from eval.dataset.picture_warnings import num_noted
from eval.encoder.checkpoint import hash_weights
from eval.encoder.encoder import Tower, block_of, device_of
from eval.encoder.identity import identity_of
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from eval.execution import Execution
from eval.files import cache_folder
from eval.progress import say
from eval.sharded import is_sharded

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import StoredImages

VARIABLE = "EMBEDDING_CACHE_GIB"
"""Environment variable: how large the cache may become; 0: nothing is read from it or written to it."""
DEFAULT_GIB = 4.0
_VERSION = 1
"""Of the rules by which rows are made, and of the file."""
_WIDTH_BYTES = 4
_DIGEST_BYTES = hashlib.sha256().digest_size
_DECIDING = ("ATEN_", "CUBLAS_", "DNNL_", "MKL_", "NVIDIA_TF32", "ONEDNN_", "TORCH_")
"""Beginnings of environment variables that may choose other kernels."""
_NUM_THREADS = 16  # a disk in a network answers many questions at once


def cached_vectors(key: Callable[[], str | None], make: Callable[[], np.ndarray], *, execution: Execution) -> tuple[np.ndarray, float]:
    """Rows from the cache, or made and put there: float32 of shape (N, D), and the seconds that making them took then or now.

    Call on every process: the main process reads and writes for all. Where rows are read, progress is told of all of them at once.

    Args:
        key: of `image_key` or `text_key`; called on the main process, before and after, so that rows of a set that changes are not stored.

    Raises:
        UserError: the environment variable holds no number, or what `make` raises.
    """
    processes, named, rows = execution.processes, "", np.empty((0, 0), dtype=np.float32)

    def look() -> list[int]:
        nonlocal named, rows
        named = (key() if most_bytes() else None) or ""
        found = read_rows(cache_file(named)) if named else None
        if found is not None:
            rows = found
        return list(rows.shape)

    shape = processes.from_main(look)
    if shape[0]:
        rows = rows if processes.is_main else np.empty(shape, dtype=np.float32)
        processes.broadcast(rows)
        with execution.rounds(processes.world_size) as advance:
            advance((shape[0] - 1) // processes.world_size)
        return rows[:-1], float(rows[-1, 0])
    started, noted = time.perf_counter(), num_noted()
    vectors_ND = make()
    seconds = time.perf_counter() - started
    is_quiet = processes.is_on_all(num_noted() == noted)
    if named and len(vectors_ND) and is_quiet and key() == named:  # a warning is to be said again next time
        last_1D = np.zeros((1, vectors_ND.shape[1]), dtype=np.float32)
        last_1D[0, 0] = seconds
        store_rows(cache_file(named), [vectors_ND, last_1D], 4 * (vectors_ND.size + last_1D.size))
    return vectors_ND, seconds


HashOf = Callable[[torch.nn.Module], str]
"""SHA-256 of a tower's weights: `hash_weights`, or one that remembers it for as long as they stay."""


def image_key(
    model: Any, inputs: SiglipInputs, dataset: "StoredImages", execution: Execution, hash_of: HashOf = hash_weights
) -> str | None:
    """Name of the embeddings of a set's pictures by a model where it lies; None: they are not cached."""
    return _key("image", model, inputs, execution, lambda: _pictures_sha256(dataset), hash_of)


def text_key(
    model: Any, inputs: SiglipInputs, captions: Iterable[str], execution: Execution, hash_of: HashOf = hash_weights
) -> str | None:
    """Name of the embeddings of captions by a model where it lies; None: they are not cached."""
    return _key("text", model, inputs, execution, lambda: _texts_sha256(captions), hash_of)


def most_bytes() -> int:
    """How large the cache may become.

    Raises:
        UserError: the environment variable holds no number of 0 or more.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT_GIB))
    with suppress(ValueError, OverflowError):
        if (size := float(text)) >= 0:
            return int(size * 2**30)
    raise UserError(f"the environment's {VARIABLE} is {text!r}, expected a number of GiB; 0 does without the cache of embeddings")


def cache_file(key: str) -> Path:
    """Where rows are cached."""
    return cache_folder("embeddings") / f"{key}.f32"


def read_rows(path: Path) -> np.ndarray | None:
    """The rows of a file, float32 of shape (N, D); None where there is none, or it is damaged, which is said."""
    try:
        with path.open("rb") as file:
            head = file.read(_WIDTH_BYTES)
            content = np.fromfile(file, dtype=np.uint8)
    except OSError:
        return None
    rows, written = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:].tobytes()
    digest, width = hashlib.sha256(head), int.from_bytes(head, "little")
    digest.update(rows.data)
    if not rows.size or digest.digest() != written:
        say(f"warning: {path} is damaged; the embeddings are made again", file=sys.stderr)
        return None
    with suppress(OSError):
        os.utime(path)  # used now
    return rows.view(np.float32).reshape(-1, width)


def store_rows(path: Path, parts: Iterable[np.ndarray], num_bytes: int) -> None:
    """Write rows, float32, part after part; what is too large, or cannot be written, is not cached."""
    if num_bytes <= most_bytes():
        _put(path, partial(_write, parts))


def bring_file(key: str, path: Path) -> bool:
    """Give a cached file (of `store_file`) its name in a run; the cache's own stays. False: there is none, or it cannot be given here."""
    if not cache_file(key).is_file():
        return False
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_files({path: partial(_link, cache_file(key))})
        os.utime(cache_file(key))
        return True
    return False


def store_file(key: str, path: Path) -> None:
    """Cache a file of embeddings as it is, without a copy where the disk is the same; the reader knows whether it is whole."""
    with suppress(OSError):
        if path.stat().st_size <= most_bytes():
            _put(cache_file(key), partial(_link, path))


def _put(path: Path, write: Callable[[Path], None]) -> None:
    """Make a file of the cache, and room for it."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)  # what a killed process left
        replace_files({path: write})
        _drop_oldest(path.parent, most_bytes())


def _link(source: Path, path: Path) -> None:
    """The same file under another name; a copy where that cannot be."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, path)


def _write(parts: Iterable[np.ndarray], path: Path) -> None:
    digest, width = hashlib.sha256(), 0
    with path.open("wb") as file:
        for rows_ND in parts:
            if not width:
                width = rows_ND.shape[1]
                head = width.to_bytes(_WIDTH_BYTES, "little")
                digest.update(head)
                file.write(head)
            data = np.ascontiguousarray(rows_ND, dtype=np.float32).data
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def _drop_oldest(folder: Path, most: int) -> None:
    """Remove what was used longest ago until the rest fits; others may do the same meanwhile."""
    found = []
    for path in folder.glob("*.f32"):
        with suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most:
            with suppress(OSError):
                path.unlink()


def _key(
    tower: Tower, model: Any, inputs: SiglipInputs, execution: Execution, items_sha256: Callable[[], str | None], hash_of: HashOf
) -> str | None:
    if not is_plain(model, tower) or (items := items_sha256()) is None:
        return None
    part = model.vision_model if tower == "image" else model.text_model
    identity = identity_of(model.config, inputs.image_processor, inputs.tokenizer)
    read = "image_processor" if tower == "image" else "tokenizer"
    others = [one.name for one in fields(inputs) if one.name not in ("image_processor", "tokenizer", "tokens")]
    settings = {name: getattr(inputs, name) for name in others}  # of token ids only where they are kept differs
    record = [_VERSION, tower, items, hash_of(part), identity["config"], identity[read], identity["library"], settings]
    record += [execution.precision, block_of(part, tower), model.config._attn_implementation, _machine(device_of(part))]
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def is_plain(model: Any, tower: Tower) -> bool:
    """Whether a tower computes what transformers' SiglipModel of its weights does, and lies whole on this process."""
    if not isinstance(model, SiglipModel) or is_sharded(model):
        return False
    for module in (model.vision_model if tower == "image" else model.text_model).modules():
        if not type(module).__module__.startswith(("transformers.", "torch.nn.")):
            return False
        if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
            return False
    return True


def _machine(device: torch.device) -> dict[str, Any]:
    """What else the last bits depend on (docs/numerics.md)."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device.type,
        "matmul": torch.get_float32_matmul_precision(),
        "decoders": decoders(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_DECIDING)},
    }
    if device.type == "cuda":
        found["gpu"] = [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cudnn.version()]
        found["tf32"] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
        found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    else:
        found["cpu"] = [_processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    return found


@cache
def _processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _texts_sha256(captions: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(f"{len(caption)} {caption}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _pictures_sha256(dataset: "StoredImages") -> str | None:
    """Hash of where each picture lies and of its file's size and time, or of its bytes where these are not known; None: one is gone."""

    def stamps(start: int) -> str | None:
        found = list[tuple[str | int, ...] | bytes]()
        for image in range(start, min(start + 256, dataset.num_images)):
            path = dataset.path(image)
            place = os.path.abspath(path) if path else dataset.image_place(image)
            stamp = dataset.file_times(image) if path else dataset.picture_stamp(image)
            try:
                found.append((place, *stamp) if stamp[1] else dataset.image_digest(image))
            except ImageError:
                return None
        return repr(found)

    digest = hashlib.sha256()
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        for part in threads.map(stamps, range(0, dataset.num_images, 256)):
            if part is None:
                return None
            digest.update(part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()

"""SigLIP's towers as ONNX or OpenVINO files of an export (docs/export-forms.md), run in a SiglipModel's place for embedding.

Config, tokenizer and image processor are those of the export that the towers' folder lies in. Files are named as transformers.js names them
(its src/utils/dtypes.js): text_model.onnx, vision_model_fp16.onnx, text_model_quantized.onnx, ...
"""

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from eval.encoder.model_files import in_words
from eval.encoder.sealed import check_sealed
from eval.errors import SettingError, UserError

SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""What ends the names of a precision's files; `_quantized` is what transformers.js loads as dtype "q8", its default on a CPU."""
TOWERS = {"vision_model": "pixel_values", "text_model": "input_ids"}
"""Name of each tower's file and of its input."""
POOLED = "pooler_output"
PROPERTIES = "siglip"
"""Section of OpenVINO's run-time information that holds what ONNX has as metadata."""
_RUNTIMES = {".onnx": ("onnxruntime", "onnx"), ".xml": ("openvino", "openvino")}

Run = Callable[[np.ndarray], np.ndarray]
"""A tower: its input (pixel values, float32 (N, 3, H, W), or token ids, int64 (N, L)) to its pooled output, float32 (N, D)."""


@dataclass(frozen=True)
class TowerFiles:
    """The files of both towers in one precision."""

    vision: Path
    text: Path

    @classmethod
    def find(cls, name: str | os.PathLike[str]) -> "TowerFiles | None":
        """Those of a folder EXPORT/onnx or EXPORT/openvino in float32, or those of which one is named; None: it is something else.

        Raises:
            SettingError: one of the two is not there.
        """
        path = Path(name)
        if path.is_file() and path.suffix in _RUNTIMES and (tower := next((one for one in TOWERS if path.stem.startswith(one)), "")):
            folder, ending = path.parent, path.stem.removeprefix(tower) + path.suffix
        elif path.is_dir() and not (path / "config.json").is_file():
            folder, ending = path, next((suffix for suffix in _RUNTIMES if (path / f"vision_model{suffix}").is_file()), "")
        else:
            return None
        if not ending:
            return None
        vision, text = (folder / f"{tower}{ending}" for tower in TOWERS)
        if missing := [file.name for file in (vision, text) if not file.is_file()]:
            raise SettingError("model", f"{name}: expected both towers in {folder}; {missing[0]} is not there. Export or copy it again")
        return cls(vision, text)

    @property
    def export(self) -> Path:
        """The export that they belong to."""
        return Path(os.path.abspath(self.vision)).parents[1]


class RuntimeSiglip(torch.nn.Module):
    """Two towers of another runtime, with the parts of a SiglipModel that embedding uses. They run on the CPU and have no gradient."""

    def __init__(self, vision: Run, text: Run, scale: float, bias: float) -> None:
        """scale, bias: of the sigmoid loss: logit = scale x cosine + bias."""
        super().__init__()
        self.vision_model, self.text_model = _Tower(vision), _Tower(text)
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)
        self.logit_bias = torch.nn.Parameter(torch.tensor(bias), requires_grad=False)

    @classmethod
    def load(cls, files: TowerFiles) -> "RuntimeSiglip":
        """Load both towers.

        Raises:
            SettingError: the runtime is not installed, or cannot use a file.
            UserError: the folder is not as it was written.
        """
        check_sealed(files.vision.parent)
        package, extra = _RUNTIMES[files.vision.suffix]
        require_package(package, extra, str(files.vision))
        load = _load_onnx if package == "onnxruntime" else _load_openvino
        towers, constants = [], dict[str, str]()
        for file in (files.vision, files.text):
            try:
                run, constants = load(file, TOWERS["vision_model" if file is files.vision else "text_model"])
            except Exception as error:  # each runtime has classes of its own
                fault = f"{file}: {package} could not use it: {in_words(error)}. Export or copy it again"
                raise SettingError("model", fault) from error
            towers.append(run)
        return cls(towers[0], towers[1], float(constants["logit_scale"]), float(constants["logit_bias"]))


class _Tower(torch.nn.Module):
    """A tower of another runtime, called as transformers' are."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, pixel_values: torch.Tensor | None = None, input_ids: torch.Tensor | None = None) -> Any:
        """The pooled output of either input."""
        given = pixel_values if pixel_values is not None else input_ids
        assert given is not None
        return SimpleNamespace(pooler_output=torch.from_numpy(np.array(self._run(given.cpu().numpy()), dtype=np.float32)))


def require_package(package: str, extra: str, needed_by: str) -> Any:
    """A module of an extra.

    Args:
        needed_by: what needs it, for the message: a key, an option or a file.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{needed_by} needs the package {package}, which cannot be imported here ({error}). Install the extra with "
            f"pip install '.[{extra}]' (with the tested versions: -c constraints.txt)"
        ) from None


def _load_onnx(file: Path, input_name: str) -> tuple[Run, dict[str, str]]:
    """(a tower run by onnxruntime on the CPU, its metadata)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run([POOLED], {input_name: given})[0], dict(session.get_modelmeta().custom_metadata_map)


def _load_openvino(file: Path, input_name: str) -> tuple[Run, dict[str, str]]:
    """(a tower run by OpenVINO on the CPU in float32, its metadata)."""
    import openvino

    core = openvino.Core()
    read = core.read_model(file)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(read, "CPU", settings)
    constants = {key: read.get_rt_info([PROPERTIES, key]).astype(str) for key in ("logit_scale", "logit_bias")}
    return lambda given: compiled({input_name: given})[POOLED], constants

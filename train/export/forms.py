"""The forms of an export next to its float32 folder: other precisions, ONNX, OpenVINO, open_clip. Each is a sealed folder in it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipModel, SiglipTokenizer

from eval.encoder.inputs import SiglipInputs
from eval.encoder.runtimes import require_package
from eval.encoder.sealed import MANIFEST, seal
from train.config.export import ExportConfig
from train.engine.export_folder import write_plain
from train.export.fast_tokenizer import fast_tokenizer
from train.export.open_clip_checkpoint import write_open_clip

_OWN = ("README.md", "config.json", MANIFEST)
"""Files of the float32 folder that another precision does not take over; its weights neither."""


def require_forms(asked: ExportConfig) -> None:
    """Refuse, before the work, forms whose packages are not installed.

    Raises:
        UserError: naming the extra.
    """
    if asked.onnx or asked.openvino:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            require_package(package, "onnx", "export.onnx" if asked.onnx else "export.openvino")
    if asked.openvino:
        require_package("openvino", "openvino", "export.openvino")


def write_forms(asked: ExportConfig, config: Any, state: dict[str, torch.Tensor], inputs: SiglipInputs, folder: Path) -> None:
    """Write the forms that are asked for into a folder that holds the float32 form already, but for its manifest.

    Args:
        config: a SiglipConfig.
        state: float32 weights of a SiglipModel.

    Raises:
        UserError: a weight is not finite in a precision, or open_clip has no place for a setting.
        OSError: a file cannot be written.
    """
    if asked.onnx and isinstance(inputs.tokenizer, SiglipTokenizer) and (fast := fast_tokenizer(inputs.tokenizer)) is not None:
        fast.save(str(folder / "tokenizer.json"))
    for dtype in (torch.bfloat16, torch.float16):
        if (name := str(dtype).removeprefix("torch.")) in asked.folders:
            write_plain(SiglipModel, config, state, folder / name, dtype)
            for path in folder.iterdir():
                if path.is_file() and path.name not in _OWN and not path.name.startswith("model"):
                    shutil.copy(path, folder / name)
            seal(folder / name)
    if asked.onnx or asked.openvino:
        _write_towers(asked, inputs, folder)
    if asked.open_clip:
        write_open_clip(config, state, inputs, folder / "open_clip")


def _write_towers(asked: ExportConfig, inputs: SiglipInputs, folder: Path) -> None:
    """ONNX, and OpenVINO made of it; the former is removed where it was not asked for."""
    from train.export.towers import write_onnx, write_openvino

    plain = SiglipModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)
    write_onnx(plain.eval(), inputs, folder / "onnx")
    if asked.openvino:
        write_openvino(folder / "onnx", folder / "openvino")
    if not asked.onnx:
        shutil.rmtree(folder / "onnx")

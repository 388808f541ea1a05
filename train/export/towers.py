"""SigLIP's towers as ONNX files, and as OpenVINO's IR made of them, each tower apart and for any batch size.

Layout and names are those that transformers.js loads from a folder with config.json (onnx/vision_model.onnx, text_model_fp16.onnx, ...);
outputs are those of transformers' towers: last_hidden_state, and pooler_output, the embedding before it is divided by its length.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipModel

from eval.encoder.inputs import SiglipInputs
from eval.encoder.runtimes import POOLED, PROPERTIES, SUFFIXES, TOWERS
from eval.encoder.sealed import seal

OPSET = 18
"""Of ONNX: LayerNormalization is an operator of it since 17, and every runtime in use reads it."""
LARGEST_BYTES = 2**31 - 2**20
"""Weights of a tower beyond it lie in a file of their own, NAME.onnx_data: a protobuf ends at 2 GiB."""
_QUANTIZED = ["MatMul", "Gemm", "Gather"]
"""Operators whose weights become int8: not the convolution of the patches, for which onnxruntime's CPU has no int8 weights."""


class _Tower(torch.nn.Module):
    """A tower with its two outputs as a tuple."""

    def __init__(self, tower: torch.nn.Module, input_name: str) -> None:
        super().__init__()
        self.tower, self._input_name = tower, input_name

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(last_hidden_state, pooler_output)."""
        found = self.tower(**{self._input_name: given})
        return found.last_hidden_state, found.pooler_output


def constants(inputs: SiglipInputs, scale: float, bias: float) -> dict[str, str]:
    """What whoever runs the towers needs to know of their inputs and outputs, as JSON values: metadata of each ONNX file.

    Args:
        scale, bias: of the sigmoid loss.
    """
    images, tokenizer = inputs.image_processor, inputs.tokenizer
    values = {
        "image_size": inputs.image_size,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "rescale_factor": images.rescale_factor,
        "resample": {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}.get(int(images.resample), str(images.resample)),
        "resize": "to a square, proportions not kept",
        "channels": "RGB",
        "text_length": inputs.num_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "padding": "right, to text_length, without attention mask",
        "lower_case": True,
        "punctuation": inputs.contract["punctuation"],
        "logit_scale": scale,
        "logit_bias": bias,
        "score": "sigmoid(logit_scale * cosine + logit_bias), cosine of the two pooler_output",
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def write_onnx(model: SiglipModel, inputs: SiglipInputs, folder: Path) -> None:
    """Write both towers in float32, float16 and int8 to a new folder, and seal it. The same model gives the same bytes.

    float16: inputs and outputs stay float32. int8: onnxruntime's dynamic quantization, weights in advance and activations of a batch while
    it runs, so that an embedding depends slightly on its batch.

    Args:
        model: float32, on the CPU, with attention "eager", whose graph is the plainest.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir()
    vision = model.config.vision_config
    examples = {
        "vision_model": torch.zeros(2, vision.num_channels, inputs.image_size, inputs.image_size),
        "text_model": torch.ones(2, inputs.num_tokens, dtype=torch.int64),
    }
    properties = constants(inputs, float(model.logit_scale.detach().exp()), float(model.logit_bias.detach()))
    for name, input_name in TOWERS.items():
        tower = getattr(model, name)
        num_weights = sum(parameter.numel() for parameter in tower.parameters())
        large = {precision: size * num_weights > LARGEST_BYTES for precision, size in {"float32": 4, "float16": 2, "int8": 1}.items()}
        plain = folder / f"{name}{SUFFIXES['float32']}.onnx"
        with _quiet():
            _save(_graph(_Tower(tower, input_name), input_name, examples[name]), plain, properties, large["float32"])
            _save(_halved(plain, large["float32"]), folder / f"{name}{SUFFIXES['float16']}.onnx", properties, large["float16"])
            _save(_quantized(plain), folder / f"{name}{SUFFIXES['int8']}.onnx", properties, large["int8"])
    seal(folder)


def write_openvino(onnx: Path, folder: Path) -> None:
    """Write both towers of an ONNX folder as OpenVINO's IR, in float32, to a new folder, and seal it.

    Raises:
        OSError: a file cannot be written.
    """
    import onnx as library
    import openvino

    folder.mkdir()
    for name in TOWERS:
        source = onnx / f"{name}{SUFFIXES['float32']}.onnx"
        converted = openvino.convert_model(str(source))
        for entry in library.load(source, load_external_data=False).metadata_props:
            converted.set_rt_info(entry.value, [PROPERTIES, entry.key])
        openvino.save_model(converted, str(folder / f"{name}.xml"), compress_to_fp16=False)
    seal(folder)


def _graph(tower: _Tower, input_name: str, example: torch.Tensor) -> Any:
    """A tower as an ONNX model in memory, without what torch notes of its source files."""
    program: Any = torch.onnx.export(
        tower.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[input_name],
        output_names=["last_hidden_state", POOLED],
        dynamic_shapes=({0: torch.export.Dim("batch_size")},),
        verbose=False,
    )
    proto = program.model_proto
    for entry in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer, *proto.graph.value_info):
        del entry.metadata_props[:]
        entry.doc_string = ""
    del proto.graph.metadata_props[:]
    return proto


def _save(proto: Any, path: Path, properties: dict[str, str], is_large: bool) -> None:
    """Write a model with its metadata; the weights of a large one next to it."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, properties)
    aside = {"save_as_external_data": True, "location": f"{path.name}_data", "all_tensors_to_one_file": True} if is_large else {}
    onnx.save_model(proto, path, **aside)


def _halved(plain: Path, is_large: bool) -> Any:
    """A model in float16 whose inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    proto = convert_float_to_float16(onnx.load(plain), keep_io_types=True, disable_shape_infer=is_large)
    OnnxModel.graph_topological_sort(proto.graph, is_deterministic=True)  # it puts casts of inputs behind what reads them
    return proto


def _quantized(plain: Path) -> Any:
    """A model with int8 weights, one scale for each output channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=plain.parent, prefix=".quantized-") as aside:
        made = Path(aside) / plain.name
        settings = {"per_channel": True, "weight_type": QuantType.QInt8, "use_external_data_format": True}
        quantize_dynamic(plain, made, op_types_to_quantize=_QUANTIZED, **settings)
        return onnx.load(made)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

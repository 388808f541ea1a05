"""What each form of an export gives: its vectors against the float32 ones, and its R@1 on the final split with a paired interval.

Read as `python -m eval --model EXPORT/FORM` reads it, so that both agree to the last digit. Shape letters: N items, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_encoder
from eval.encoder.runtimes import SUFFIXES
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.evaluate import evaluate
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS
from eval.search.retrieve import Embedded, embed, find
from eval.search.stage import Stage
from train.config.export import ExportConfig

REFERENCE = "float32"


def measured_forms(asked: ExportConfig) -> dict[str, str]:
    """Name of each form -> what of the export `eval --model` reads it from, float32 first.

    open_clip is not among them: its weights are the float32 ones, and its own package reads them (results/export.md).

    >>> measured_forms(ExportConfig(dtypes=["float16"], onnx=True))["onnx-int8"]
    'onnx/vision_model_quantized.onnx'
    """
    forms = {REFERENCE: ""} | {name: name for name in asked.folders if name in ("bfloat16", "float16")}
    if asked.onnx:
        forms |= {f"onnx-{precision}": f"onnx/vision_model{suffix}.onnx" for precision, suffix in SUFFIXES.items()}
    return forms | ({"openvino": "openvino"} if asked.openvino else {})


def measure_forms(
    asked: ExportConfig, export: Path, dataset: RetrievalSet, *, strip_punctuation: bool = False, execution: Execution = ONE_PROCESS
) -> list[dict[str, Any]]:
    """A record of each form, float32 first; call on every process, the records are the main process's.

    Each has its name, `model` (what of the export it was read from), `num_bytes` of its weights, `max_difference` (the largest absolute
    difference of an element of a unit vector from the float32 form's), `stages` of report.json's kind with R@1 alone, and, but for float32,
    `comparisons` of R@1 with float32.

    Raises:
        UserError: a form cannot be read, or an embedding is not finite.
    """
    stages: list[Stage] = []
    differences: list[float] = []
    reference: Embedded | None = None
    forms = measured_forms(asked)
    for name, model_path in forms.items():
        with execution.processes.jointly():
            model, inputs = load_encoder(export / model_path, strip_punctuation=strip_punctuation)
            model.to(execution.device)
        embedded = embed(model, inputs, dataset, execution=execution)
        reference = embedded if reference is None else reference
        differences.append(
            max(_difference(embedded.images_ID, reference.images_ID), _difference(embedded.captions_CD, reference.captions_CD))
        )
        stages.append(find(name, embedded, dataset, processes=execution.processes))
    if not execution.processes.is_main:
        return []
    figures = evaluate(dataset, stages, [(name, REFERENCE) for name in forms if name != REFERENCE])
    return [
        {
            "name": name,
            "model": model_path,
            "num_bytes": _num_bytes(export, model_path),
            "max_difference": difference,
            "stages": {direction: _recall(figures.stages[name][direction]) for direction in DIRECTIONS},
            "comparisons": [row for row in figures.comparisons if row["stage"] == name and row["metric"] == "R@1"],
        }
        for (name, model_path), difference in zip(forms.items(), differences, strict=True)
    ]


def exports_section(records: Sequence[Mapping[str, Any]]) -> Section:
    """The section of a report on the forms of an export."""
    return Section(EXPORTS, list(records))


def exports_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on each form of an export, from the section `exports` of report.json: size, R@1 of both directions, what it costs."""
    lines = []
    for one in records:
        to_text, to_image = (100 * one["stages"][direction]["R@1"] for direction in DIRECTIONS)
        line = f"{one['name']}: {one['num_bytes'] / 1e6:.1f} MB, R@1 image to text {to_text:.1f}, text to image {to_image:.1f}"
        for row in one["comparisons"]:
            if row["direction"] == "both":
                low, high = (100 * bound for bound in row["ci95"])
                delta = round(100 * row["delta"], 2) + 0.0  # no -0.00
                line += f"; mean {delta:+.2f} against {row['against']} [{low:+.2f}, {high:+.2f}]"
                line += f", vectors differ by at most {one['max_difference']:.1g}"
        lines.append(line)
    return lines


EXPORTS = SectionFormat(key="exports", notes=lambda record: [f"Export, {line}." for line in exports_lines(record)])
"""The forms of an export in the final report."""


def _difference(found_ND: np.ndarray, reference_ND: np.ndarray) -> float:
    return float(np.abs(found_ND - reference_ND).max())


def _recall(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"R@1": figures["R@1"], "ci95": {"R@1": figures["ci95"]["R@1"]}}


def _num_bytes(export: Path, model_path: str) -> int:
    """Size of a form's weights on the disk."""
    place = export / model_path
    if place.is_file():  # both towers of a precision, and the weights next to them
        ending = place.name.removeprefix("vision_model")
        files = [path for path in place.parent.iterdir() if path.name in {f"{tower}{ending}{more}" for tower in _TOWERS for more in _MORE}]
    else:
        files = [path for path in place.iterdir() if path.suffix in (".safetensors", ".xml", ".bin")]
    return sum(path.stat().st_size for path in files)


_TOWERS, _MORE = ("vision_model", "text_model"), ("", "_data")

"""The section `export` of a configuration: the forms of the best checkpoint next to the float32 folder, which is always written."""

import re
from typing import Literal

from pydantic import field_validator

from train.config.section import Section

Dtype = Literal["float32", "bfloat16", "float16"]
FOLDERS = ("bfloat16", "float16", "onnx", "openvino", "open_clip")
"""Names that folders in an export can have."""


class ExportConfig(Section):
    """In which other forms the best checkpoint is written, each measured in the final report (docs/export-forms.md)."""

    dtypes: list[Dtype] = ["float32"]
    """Precisions of the weights: float32, which is always written, to runs/NAME/export; bfloat16 and float16 as whole folders in it."""
    onnx: bool = False
    """Both towers as ONNX, in float32, float16 and int8, as transformers.js names the files. Needs the extra `onnx`."""
    openvino: bool = False
    """Both towers as OpenVINO's IR, in float32. Needs the extras `onnx` and `openvino`."""
    open_clip: bool = False
    """The float32 weights as a checkpoint that open_clip loads."""
    language: list[str] = []
    """Languages of the captions, for the model card: ISO 639 codes as the hub takes them, such as [en]. Empty: the card names none."""

    @field_validator("language", mode="after")
    @classmethod
    def _check_language(cls, value: list[str]) -> list[str]:
        if wrong := [one for one in value if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", one) is None]:
            raise ValueError(f"expected codes of languages such as en or pt-BR; found {wrong[0]!r}")
        return value

    @property
    def folders(self) -> list[str]:
        """Names of the folders in the export, in the order in which they are written.

        >>> ExportConfig(dtypes=["bfloat16", "float32"], onnx=True).folders
        ['bfloat16', 'onnx']
        """
        return [name for name in FOLDERS if (name in self.dtypes or getattr(self, name, False))]

    @property
    def bytes_per_weight(self) -> int:
        """What the forms next to the float32 one take on the disk while they are written, for each weight of the model.

        >>> ExportConfig(dtypes=["float16"], onnx=True).bytes_per_weight
        9
        """
        onnx = 4 + 2 + 1 if self.onnx or self.openvino else 0
        return onnx + sum({"onnx": 0, "openvino": 4, "open_clip": 4}.get(name, 2) for name in self.folders)

"""The data of a run as its folder tells them: how they were read (config.yaml), and which image is of which split (split.parquet)."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.errors import UserError
from eval.files import read_text
from eval.manifest.made_split import FILE, SplitByHash

_CONFIG, _CONFIG_BYTES = "config.yaml", 2**20
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reading:
    """How a source was read: its image root (None: the default, or none is there), and our column -> its own name."""

    image_root: str | None
    columns: Mapping[str, str]

    def columns_beside(self, given: Mapping[str, str]) -> dict[str, str]:
        """Its columns that a command line, which gives some, leaves out; `caption` and `captions` are one."""
        taken = {*given, *(("caption", "captions") if {"caption", "captions"} & set(given) else ())}
        return {ours: theirs for ours, theirs in self.columns.items() if ours not in taken}


@dataclass(frozen=True)
class RunData:
    """What the folder of a run says of its data.

    Attributes:
        folder: of the run.
        runs_folder: as its configuration names it.
        record: the section `data` of its configuration; empty where that cannot be read.
    """

    folder: Path
    runs_folder: str
    record: Mapping[str, Any]

    @classmethod
    def of_folder(cls, folder: Path) -> "RunData":
        """Of the folder with split.parquet or config.yaml; what cannot be read is not known."""
        try:
            config = yaml.safe_load(read_text(folder / _CONFIG, _CONFIG_BYTES))
            found, runs_folder = config.get("data"), config.get("runs_folder")
        except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
            found, runs_folder = None, None
        return cls(folder, runs_folder if isinstance(runs_folder, str) else "", found if isinstance(found, dict) else {})

    @classmethod
    def of_model(cls, model: str) -> "RunData | None":
        """Of the run whose export a model is; None: it is no run's."""
        export = Path(os.path.abspath(model))
        if not model or not export.exists():
            return None
        while export.parent != export and (export.is_file() or (export.parent / "model.safetensors").is_file()):
            export = export.parent  # of a form of it: export/bfloat16, export/onnx/text_model_fp16.onnx
        folder = export.parent
        if not any((folder / name).is_file() for name in (FILE, _CONFIG)):
            return None
        return cls.of_folder(Path(os.path.relpath(folder)) if not os.path.isabs(model) else folder)

    @classmethod
    def of_report(cls, report: Path) -> "RunData | None":
        """Of the run whose report a folder is, RUN/eval/SPLIT; None: it is no run's."""
        run = next((folder.parent for folder in Path(os.path.abspath(report)).parents if folder.name == "eval"), None)
        return None if run is None else cls.of_folder(run)

    @property
    def split_file(self) -> Path | None:
        """Its split.parquet; None: it made no splits."""
        path = self.folder / FILE
        return path if path.is_file() else None

    @property
    def rule(self) -> SplitByHash | None:
        """How it made its splits; None: that is not known."""
        made, names = self.record.get("split"), {part: self.record.get(f"{part}_split") for part in ("train", "val", "test")}
        if not isinstance(made, dict) or not isinstance(names["train"], str):
            return None
        shares, seed = {part: share for part in ("val", "test") if isinstance(share := made.get(part), int | float)}, made.get("seed")
        return SplitByHash.of_names(names, shares, seed) if isinstance(seed, int) and len(shares) == 2 else None

    def reading(self, source: str) -> Reading | None:
        """How it read a source; None: it read another.

        Paths of a configuration are relative to the repository that the run was made in, which the source is found by.
        """
        own, root, columns = (self.record.get(key) for key in ("source", "image_root", "columns"))
        if not isinstance(own, str) or not isinstance(root, str | None) or not isinstance(columns, dict):
            return None
        places = [place for place in self._roots() if _is_same(place / own, source) or (own == source and not os.path.exists(source))]
        if not places:
            return None
        roots = [] if root is None else [os.path.normpath(place / root) for place in places if (place / root).is_dir()]
        return Reading(next(iter(roots), None), {str(ours): str(theirs) for ours, theirs in columns.items()})

    def _roots(self) -> Iterator[Path]:
        """Where the paths of its configuration may begin."""
        around, named = Path(os.path.abspath(self.folder)).parent, Path(os.path.normpath(self.runs_folder or "."))
        if not named.is_absolute() and around.parts[-len(named.parts) :] == named.parts:
            yield Path(*around.parts[: len(around.parts) - len(named.parts)])
        yield from (_ROOT, Path.cwd())


def _is_same(path: Path, source: str) -> bool:
    try:
        return os.path.samefile(path, source)
    except (OSError, ValueError):
        return False


def exported(name: str) -> str:
    """The checkpoint that a name stands for: of the folder of a run its export; anything else as it is.

    Raises:
        UserError: a run has none yet.
    """
    run, config = Path(name), "config.json"
    if (run / "export" / config).is_file() and not (run / config).is_file():
        return str(run / "export")
    if (run / _CONFIG).is_file() and not (run / config).is_file():
        raise UserError(
            f"{name} has no export yet: end the run with its own command, or export a checkpoint: ./launch.sh export {name} "
            f"--output {name}-export, and give that"
        )
    return name

"""The folder of a run: claimed by one job at a time, and continued only by the configuration that began it."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eval.atomic import TakenError, check_writable, contents, hash_file, lock_file, replace_files, sweep
from eval.encoder.hub import without_revision
from eval.encoder.sealed import is_sealed, verify
from eval.errors import UserError, naming
from eval.report.page.about import About, shown_command
from train.config.export import FOLDERS
from train.config.run import PATH_KEYS, RunConfig
from train.config.yaml_text import YamlFault, parse_yaml
from train.engine.checkpoint import Checkpoints, State
from train.engine.metrics_log import CURVES, flatten

LOG = "log.txt"
"""What a run said, with the time, from its first start on."""
_MODEL_KEYS = ("model.base", "miner")
_EXPORTED_SUFFIXES = {".json", ".safetensors", ".md", ".model", ".txt", ".jinja"}


def claim_folder(config: RunConfig) -> Any:
    """Make the run's folder, lock it against a second job, check the configuration against that of an earlier run, and write config.yaml.

    The checkpoints must be this configuration's too. A folder without checkpoints or a finished report holds nothing to protect: an attempt
    that failed before its first step does not stand in the way of the next. Main process only. Returns the lock, to be kept open as long as
    the job runs.

    Raises:
        UserError: another job runs here, or the configuration differs, from the file's or from the checkpoints'.
        OSError: the folder cannot be written.
    """
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with naming(folder):
            lock = lock_file(folder / ".lock", folder)
    except TakenError as error:
        raise UserError(f"{folder} is in use by another job, {error.holder}; wait for it, or take another name=") from None
    for place in (folder, *[path for path in folder.rglob("*") if path.is_dir()]):
        sweep(place)
    for probe in folder.glob(".seen-*"):  # of a job killed while it asked who sees the folder (train/engine/distributed.py)
        probe.unlink(missing_ok=True)
    if not _is_begun(folder):
        for made in ("scratch", "frozen"):  # of a run that is not there any more
            shutil.rmtree(folder / made, ignore_errors=True)
    check_continues(config)
    replace_files({folder / "config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)})
    return lock


def check_continues(config: RunConfig) -> None:
    """Refuse a folder that holds a run, or checkpoints, of another configuration.

    Raises:
        UserError: naming what differs.
    """
    folder = config.run_folder
    if _is_begun(folder) and (folder / "config.yaml").exists():
        _check_same(folder / "config.yaml", config)
    check_checkpoints(config)


def _is_begun(folder: Path) -> bool:
    return bool(Checkpoints(folder / "checkpoints").steps()) or (folder / "finished.json").exists()


def check_outputs(config: RunConfig, reports: Sequence[Path]) -> None:
    """Refuse, before the first step, an export and reports that could not be written after the last one.

    Args:
        reports: the folders of reports.

    Raises:
        UserError: what is there would be lost, or something cannot be written.
    """
    check_replaceable(config.run_folder / "export")
    check_writable(*(folder / name for folder in reports for name in ("report.json", "queries.parquet", "report.html")))


def _check_same(path: Path, config: RunConfig) -> None:
    try:
        old = parse_yaml(path.read_text(encoding="utf-8"))
    except (YamlFault, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or take another name=") from None
    if not isinstance(old, dict):
        raise UserError(f"{path} holds no configuration: restore it, or take another name=")
    with suppress(ValidationError):  # completed by keys that did not exist when it was written
        old = type(config).model_validate(old).model_dump(mode="json")
    flat_old, flat_new = (_unpinned(flatten(one, ".")) for one in (old, config.model_dump(mode="json")))
    free = tuple(f"{key}." for key in config.free_keys)
    keys = (key for key in dict.fromkeys((*flat_old, *flat_new)) if not f"{key}.".startswith(free))
    _refuse_other(config, f"{config.run_folder} holds a run", flat_old, flat_new, keys)


def _refuse_other(config: RunConfig, what: str, old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> None:
    differing = [key for key in keys if old.get(key) != new.get(key)]
    source = dict.fromkeys(config.from_data, " (follows from the data and other keys)")
    lines = "\n  ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}{source.get(key, '')}" for key in differing)
    if lines:
        folder = config.run_folder
        again = "Bring back its data, epochs and shares" if set(differing) <= set(config.from_data) else "Give it those values again"
        raise UserError(
            f"{what} with another configuration:\n  {lines}\n"
            f"{again}, take another name=, remove the folder, or start from what it learnt: {base_of(folder)}"
        )


def base_of(run_folder: Path) -> str:
    """How to start from the weights of a run, in words: its export, or where it has none yet the command that makes one."""
    if (run_folder / "export").is_dir():
        return f"model.base={run_folder}/export"
    return f"./launch.sh export {run_folder} --output {run_folder}-export, then model.base={run_folder}-export"


def learnt(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what is learnt, "train.batch_size", with their values as JSON keeps them; paths are left out, for what they lead
    to is known by its content."""
    free = tuple(f"{key}." for key in config.free_keys)
    flat = _unpinned(flatten(_without_paths(config.model_dump(mode="json")), "."))
    return {key: value for key, value in flat.items() if not f"{key}.".startswith(free)}


def _unpinned(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with models of the hub without @REVISION: their weights are known by hash, so a revision may be named later."""
    return {key: without_revision(value) if key in _MODEL_KEYS and value is not None else value for key, value in flat.items()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key not in PATH_KEYS}
    return value


def check_checkpoints(config: RunConfig) -> None:
    """Refuse checkpoints that a run with another configuration wrote, and one whose folder was renamed.

    Checkpoints of earlier versions do not know their configuration, and a damaged one says nothing: these pass.

    Raises:
        UserError: naming the checkpoint and what differs.
    """
    new = learnt(config)
    for path, step, state in Checkpoints(config.run_folder / "checkpoints").sealed_states():
        if state.step != step:
            raise UserError(
                f"{path} was renamed: by its state.json it is the checkpoint of step {state.step}. Name it step-{state.step} again, or "
                "move it out of the folder"
            )
        old = state.config or {}
        sections = tuple(f"{key}." for key, value in old.items() if value is None)  # that were null; other keys are of a later version
        _refuse_other(config, f"{path} is of a run", old, new, [*old, *(key for key in new if key.startswith(sections))])


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that an export would destroy: one that is there, is not empty, and is no earlier export.

    Raises:
        UserError: naming up to five of what it holds, or it cannot be written.
    """
    found = contents(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    foreign = [name for name in found if not _is_exported(folder / name)]
    if foreign or (found and not {"config.json", "model.safetensors"} <= set(found)):
        raise UserError(f"{folder} is there and is no earlier export (it holds {(foreign or found)[:5]}); give an empty or a new folder")
    check_writable(folder / "config.json")


def _is_exported(path: Path) -> bool:
    if path.is_dir():
        return path.name in FOLDERS and is_sealed(path)
    return path.suffix in _EXPORTED_SUFFIXES


def sealed_forms(export: Path) -> list[Path]:
    """The folders of an export's other forms that have a manifest of their own."""
    inner = [path for name in FOLDERS for path in (export / name, *sorted((export / name).glob("*/")))]
    return [path for path in inner if is_sealed(path)]


def report_folder(config: RunConfig) -> Path:
    """Where the final report lies: eval/SPLIT."""
    split = config.data.test_split or config.data.val_split or "none"
    return config.run_folder / "eval" / split


def about_run(config: RunConfig, state: State, stage: str, against: str, measured: Sequence[str]) -> About:
    """What the final report's page says of a run.

    Args:
        state: of the newest checkpoint; the one that was chosen is exported.
        stage: of what was tuned; against: of what it was before.
        measured: every stage that has the tuned weights themselves.
    """
    folder, val, test = config.run_folder, config.data.val_split, config.data.test_split
    is_chosen = state.best_step is not None
    origin = f"checkpoint of step {state.chosen_step}, {f'chosen on {val}' if is_chosen else 'the last'}"
    same = "The checkpoint was chosen on the split that is measured here, where it looks better than it is; data.test_split names another."
    pages = sorted((folder / "negatives").glob("*.html"), key=lambda path: (path.stat().st_mtime, path.name))
    return About(
        title=config.name,
        pair=(stage, against),
        words={(stage, against): "Tuning"},
        chosen=dict.fromkeys(measured, origin),
        warnings=[same] if is_chosen and test is None else [],
        command=shown_command(),
        curves=folder / "curves.png" if config.curves else None,
        links=[
            ("the export", folder / "export"),
            *((f"mining page {number} of {len(pages)}", path) for number, path in enumerate(pages, 1)),
            ("what the run said, log.txt", folder / LOG),
            ("its configuration, config.yaml", folder / "config.yaml"),
        ],
    )


def ended(config: RunConfig, expected: Mapping[str, Any], made: Sequence[Path] = ()) -> bool:
    """True if the run ended with its export and, where there is a split for it, its final report.

    Args:
        expected: what its mark must say, for it to be what the configuration asks for.
        made: further reports that must be there.
    """
    try:
        record = read_ended(config)
        files = [config.run_folder / "export" / "model.safetensors", *_reports(config, made)]
        return {key: record.get(key) for key in expected} == expected and all(path.is_file() for path in files)
    except (OSError, ValueError, AttributeError):
        return False


def read_ended(config: RunConfig) -> dict[str, Any]:
    """What finished.json says; raises OSError or ValueError where there is none."""
    return json.loads((config.run_folder / "finished.json").read_text(encoding="utf-8"))


def _reports(config: RunConfig, made: Sequence[Path]) -> list[Path]:
    final = [report_folder(config) / "report.json"] if config.data.test_split or config.data.val_split else []
    return [*final, *made]


def mark_ended(config: RunConfig, record: Mapping[str, Any], made: Sequence[Path] = ()) -> None:
    """Write finished.json with the hash of every report, committed by a rename; arguments as `ended`."""
    folder = config.run_folder
    reports = {path.relative_to(folder).as_posix(): hash_file(path) for path in _reports(config, made)}
    replace_files({folder / "finished.json": json.dumps({**record, "reports_sha256": reports}) + "\n"})


def check_ended(config: RunConfig) -> None:
    """Refuse a finished run whose export or reports are not as they were written; those of earlier versions cannot be checked.

    Raises:
        UserError: naming what is damaged, and how it is made again.
        OSError, ValueError: finished.json is not there.
    """
    folder, export = config.run_folder, config.run_folder / "export"
    parts = [*([export] if is_sealed(export) else []), *sealed_forms(export)]
    faults = {part.relative_to(folder): fault for part in parts if (fault := verify(part))}
    damaged = [f"{part}/ ({fault})" for part, fault in faults.items()]
    for name, expected in read_ended(config).get("reports_sha256", {}).items():
        if hash_file(folder / name) != expected:
            damaged.append(f"{name} (it does not have the bytes that were written)")
    if not damaged:
        return
    remedy = f"restore {'it' if len(damaged) == 1 else 'them'} from a copy: the checkpoints that could make them again are gone"
    if Checkpoints(folder / "checkpoints").steps():
        doomed = f"{folder}/finished.json" + (f" and {export}" if faults else "")
        remedy = f"remove {doomed}, and the same command makes export and report again from the checkpoints"
    raise UserError(f"{folder} is finished, and damaged since: {', '.join(damaged)}; {remedy}")


def measured_on_val(config: RunConfig) -> str:
    """A sentence on figures of the very split that the checkpoint was chosen on; empty: they are of another, or there are none."""
    if config.data.test_split is not None or config.data.val_split is None:
        return ""
    return f"Measured on {config.data.val_split}, on which the checkpoint was chosen: the gain looks better than it is"


def another_rate(config: RunConfig) -> str:
    """What to do when no checkpoint beat what a run began with."""
    return f"another rate: ./launch.sh CONFIG.yaml name=NEW train.learning_rate={config.train.learning_rate / 3:.1g}"


def place_lines(config: RunConfig) -> list[str]:
    """Where the export of a run lies, and its picture, if there is one."""
    folder = config.run_folder
    return [f"export   {folder}/export", *([f"picture  {folder}/{CURVES}"] if (folder / CURVES).is_file() else [])]

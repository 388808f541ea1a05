"""Export: a checkpoint of a run as plain Hugging Face weights, float32, adapters merged, with processor and model card.

python -m train.export RUN_FOLDER --output DIR [--checkpoint best|last|STEP]
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipModel

from eval.durable import sync_folder
from eval.errors import UserError
from eval.file_modes import apply_umask
from train.checkpoint import Checkpoints, NoReadableCheckpoint, State, verify
from train.config import JobConfig, RunConfig
from train.config_file import Kind, load_run_config, read_yaml
from train.model import TunedModel, build_model, merged_state, resolve_base
from train.run_paths import found_from_here
from train.sentence_encoder import write_sentence_encoder

_EXPORTED_SUFFIXES = {".json", ".safetensors", ".md", ".model", ".txt", ".jinja"}


def export_model(tuned: TunedModel, folder: Path, card: str) -> None:
    """Write a plain SiglipModel + processor folder, whole or not at all; an earlier export there is replaced.

    Raises:
        UserError: the folder holds something else, which would be lost.
        OSError: it cannot be written.
    """

    def write(temporary: Path) -> None:
        write_plain(SiglipModel, tuned.siglip.config, merged_state(tuned), temporary)
        tuned.inputs.save(temporary)
        write_sentence_encoder(temporary, tuned.siglip.config.text_config.max_position_embeddings)
        (temporary / "README.md").write_text(card, encoding="utf-8")

    commit_export(folder, write)


def write_plain(kind: Any, config: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a transformers model of this kind with these float32 weights."""
    with torch.device("meta"):
        plain = kind(config)
    plain = plain.to_empty(device="cpu").float()
    plain.load_state_dict(state, assign=True)
    plain.config.dtype = torch.float32
    plain.save_pretrained(folder)


def commit_export(folder: Path, write: Callable[[Path], None]) -> None:
    """Make an export folder, whole or not at all; an earlier export there is replaced.

    Args:
        write: fills a temporary folder.

    Raises:
        UserError: the folder holds something else, which would be lost.
        OSError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    for leftover in (*folder.parent.glob(f".{folder.name}.*.tmp"), *folder.parent.glob(f".{folder.name}.*.old")):
        shutil.rmtree(leftover, ignore_errors=True)  # of writers that were killed
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        apply_umask(temporary)
        if folder.exists():
            retired = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.rename(folder, retired)
            os.rename(temporary, folder)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.rename(temporary, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that an export would destroy: one that is there, is not empty, and is no earlier export.

    Raises:
        UserError: naming up to five of what it holds.
    """
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name] if folder.exists() else []
    foreign = [name for name in found if Path(name).suffix not in _EXPORTED_SUFFIXES or (folder / name).is_dir()]
    if foreign or (found and not {"config.json", "model.safetensors"} <= set(found)):
        raise UserError(f"{folder} is there and is no earlier export (it holds {(foreign or found)[:5]}); give an empty or a new folder")


def model_card(config: JobConfig, state: State, chosen_step: int, base: str, *, weights: str = "") -> str:
    """The README.md of an export, with the metadata the hub reads.

    Args:
        weights: a sentence on what was done with the checkpoint's weights, for its figures are then not the model's; empty: nothing.
    """
    how = f"LoRA (rank {config.model.lora.rank}), merged" if config.model.lora else "full fine-tuning"
    if config.model.freeze:
        how += f", frozen: {', '.join(config.model.freeze)}"
    score = (
        "" if weights or state.best_score is None or chosen_step != state.best_step else f" (mean R@1 on val {100 * state.best_score:.2f})"
    )
    mining = "none"
    if config.mining is not None:
        what = {
            "columns": "hard captions per image",
            "images": "hard images per caption",
            "neighbours": "neighbours per image, in one batch",
        }
        every = (
            f"{config.mining.mine_every_steps} steps" if config.mining.mine_every_steps else f"{config.mining.mine_every_epochs} epoch(s)"
        )
        mining = f"up to {config.mining.negatives_per_image} {what[config.mining.form]}, refreshed every {every}"
    weights_line = f"- Weights: {weights}\n" if weights else ""
    base_line = f"base_model: {config.model.base}\n" if config.model.base and not Path(config.model.base).exists() else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n"
        f"tags: [siglip, image-text-retrieval]\n{base_line}---\n\n"
        f"# {config.name}\n\n"
        f"A SigLIP model tuned for image-text retrieval, from `{base}` (weights {state.base_sha256[:16]}).\n\n"
        f"- Method: {how}; sigmoid loss, batch {config.train.batch_size}, {config.train.precision}; mined negatives: {mining}.\n"
        f"- Data: `{config.data.source}`, split `{config.data.train_split}`.\n"
        f"- Checkpoint: step {chosen_step} of {config.train.max_steps}{score}.\n{weights_line}\n"
        "```python\n"
        "import torch\nfrom transformers import AutoProcessor, SiglipModel\n\n"
        'model = SiglipModel.from_pretrained("THIS_FOLDER").eval()\nprocessor = AutoProcessor.from_pretrained("THIS_FOLDER")\n'
        "length = model.config.text_config.max_position_embeddings  # pad to it, and pass no attention mask\n"
        'inputs = processor(text=["a caption"], images=[image], padding="max_length", max_length=length,\n'
        '                   truncation=True, return_tensors="pt")\n'
        "with torch.no_grad():\n"
        '    image_embedding = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output\n'
        '    text_embedding = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output\n'
        "```\n\nConfiguration:\n\n```json\n" + json.dumps(config.model_dump(mode="json"), indent=1) + "\n```\n"
    )


def choose_step(checkpoints: Checkpoints, newest: State, which: str) -> int:
    """Step of the best, the last or a numbered checkpoint.

    Raises:
        UserError: there is no such checkpoint.
    """
    if which == "last":
        return newest.step
    if which == "best":
        return newest.step if newest.best_step is None else newest.best_step
    if not which.isdigit() or int(which) not in checkpoints.steps():
        raise UserError(f"--checkpoint is best, last or one of {checkpoints.steps()}; found {which!r}")
    return int(which)


@dataclass(frozen=True)
class Chosen:
    """A checkpoint of a run, loaded on the CPU: its model, its step, the run's newest state, and the base's name."""

    tuned: TunedModel
    step: int
    newest: State
    base: str


def chosen_checkpoint(config: RunConfig, which: str) -> tuple[Checkpoints, State, int]:
    """(checkpoints of a run, its newest state, step of the best, the last or a numbered checkpoint, which is whole).

    Raises:
        UserError: the run or the checkpoint is not there, or damaged.
    """
    checkpoints = Checkpoints(config.run_folder / "checkpoints")
    found = checkpoints.newest()
    if found is None:
        raise NoReadableCheckpoint(f"{checkpoints.folder}: no checkpoints here; is it the folder of a run (runs/NAME)?")
    newest = found[0]
    step = choose_step(checkpoints, newest, which)
    if step != newest.step and (fault := verify(checkpoints.path(step))):
        raise NoReadableCheckpoint(f"{checkpoints.path(step)} is damaged: {fault}")
    return checkpoints, newest, step


def load_checkpoint(config: JobConfig, which: str) -> Chosen:
    """Load the best, the last or a numbered checkpoint of a run.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged.
    """
    checkpoints, newest, step = chosen_checkpoint(config, which)
    base = resolve_base(config, str(config.run_folder / "scratch"))
    tuned = build_model(config.model, base)
    if tuned.base_sha256 != newest.base_sha256:
        raise UserError(f"{base} has other weights now than when the run began; adapters and frozen towers would not fit it")
    checkpoints.load_weights(step, tuned)
    return Chosen(tuned, step, newest, base)


def export_checkpoint(config: JobConfig, which: str, folder: Path) -> int:
    """Export one checkpoint of a run. Returns its step.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged.
        OSError: the export cannot be written.
    """
    chosen = load_checkpoint(config, which)
    export_model(chosen.tuned, folder, model_card(config, chosen.newest, chosen.step, chosen.base))
    return chosen.step


def read_run(folder: Path) -> JobConfig:
    """The configuration of a job's run, wherever its folder lies now; see `read_run_as`."""
    return read_run_as(JobConfig, folder)


def read_run_as(kind: type[Kind], folder: Path) -> Kind:
    """The configuration of a run of this kind, wherever its folder lies now and from whichever folder it is read.

    Raises:
        UserError: it cannot be read.
    """
    config = found_from_here(load_run_config(kind, folder / "config.yaml"), folder)
    return config.model_copy(update={"runs_folder": str(folder.parent), "name": folder.name})


def export_run(run_folder: Path, which: str, folder: Path) -> int:
    """Export a checkpoint of a run of either kind: a tuned SigLIP, or a tuned reranker. Returns its step.

    Raises:
        UserError, OSError: as export_checkpoint.
    """
    from train.reranker import is_reranker
    from train.reranker_config import RerankerConfig
    from train.reranker_final import export_matcher

    if is_reranker(read_yaml(run_folder / "config.yaml")):
        return export_matcher(read_run_as(RerankerConfig, run_folder), which, folder)
    return export_checkpoint(read_run(run_folder), which, folder)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.export", description="Export a checkpoint of a run as plain Hugging Face weights."
    )
    parser.add_argument("run_folder", type=Path, help="folder of a run, e.g. runs/demo")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a step number")
    asked = parser.parse_args(arguments)
    try:
        step = export_run(asked.run_folder, asked.checkpoint, asked.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: could not write {asked.output}: {error}", file=sys.stderr)
        return 4
    print(f"step {step} exported to {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

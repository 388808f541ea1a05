"""A tuned SigLIP as a plain folder of Hugging Face weights: a checkpoint of a run, loaded and exported with its card."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import SiglipModel

from eval.errors import UserError
from train.config.job import JobConfig
from train.engine.checkpoint import State
from train.engine.export_folder import chosen_checkpoint, replaced_export, write_plain
from train.model.siglip import TunedModel, build_model, merged_state, resolve_base
from train.siglip.sentence_encoder import write_sentence_encoder


def export_model(tuned: TunedModel, folder: Path, card: str) -> None:
    """Write a plain SiglipModel + processor folder, whole or not at all; an earlier export there is replaced.

    Raises:
        UserError: the folder holds something else, which would be lost.
        OSError: it cannot be written.
    """
    with replaced_export(folder) as temporary:
        write_plain(SiglipModel, tuned.siglip.config, merged_state(tuned), temporary)
        tuned.inputs.save(temporary)
        write_sentence_encoder(temporary, tuned.siglip.config.text_config.max_position_embeddings)
        (temporary / "README.md").write_text(card, encoding="utf-8")


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


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint of a run, loaded on the CPU: its model, its step, the run's newest state, and the base's name."""

    tuned: TunedModel
    step: int
    newest: State
    base: str


def load_checkpoint(config: JobConfig, which: str) -> LoadedCheckpoint:
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
    return LoadedCheckpoint(tuned, step, newest, base)


def export_checkpoint(config: JobConfig, which: str, folder: Path) -> int:
    """Export one checkpoint of a run. Returns its step.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged.
        OSError: the export cannot be written.
    """
    loaded = load_checkpoint(config, which)
    export_model(loaded.tuned, folder, model_card(config, loaded.newest, loaded.step, loaded.base))
    return loaded.step

"""A tuned SigLIP as a plain folder of Hugging Face weights: a checkpoint of a run, loaded and exported with its card."""

import json
from pathlib import Path

from transformers import SiglipModel

from eval.encoder.hub import with_revision, without_revision
from eval.manifest.formats.hub import with_data_revision
from train.config.export import ExportConfig
from train.config.job import JobConfig
from train.engine.checkpoint import State
from train.engine.export_folder import average_line, load_chosen, plain_state, replaced_export, write_plain
from train.export.forms import write_forms
from train.model.siglip import TunedModel, build_model
from train.siglip.mining_effect import mining_effect
from train.siglip.sentence_encoder import write_sentence_encoder


def export_model(tuned: TunedModel, folder: Path, card: str, forms: ExportConfig = ExportConfig()) -> None:
    """Write a plain SiglipModel + processor folder, whole or not at all; an earlier export there is replaced.

    Args:
        forms: what is written in it besides, from the same weights.

    Raises:
        UserError: the folder holds something else, which would be lost; or as `train.export.forms.write_forms`.
        OSError: it cannot be written.
    """
    weights = plain_state(tuned.siglip)
    with replaced_export(folder, sum(tensor.nbytes for tensor in weights.values())) as temporary:
        write_plain(SiglipModel, tuned.siglip.config, weights, temporary)
        tuned.inputs.save(temporary)
        write_sentence_encoder(temporary, tuned.siglip.config.text_config.max_position_embeddings)
        write_forms(forms, tuned.siglip.config, weights, tuned.inputs, temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def model_card(config: JobConfig, state: State, chosen_step: int, *, weights: str = "") -> str:
    """The README.md of an export, with the metadata the hub reads; it claims mined negatives only for weights that saw some.

    Args:
        weights: a sentence on what was done with the checkpoint's weights, for its figures are then not the model's; empty: nothing.
    """
    how = f"LoRA (rank {config.model.lora.rank}), merged" if config.model.lora else "full fine-tuning"
    if config.model.freeze:
        how += f", frozen: {', '.join(config.model.freeze)}"
    score = (
        "" if weights or state.best_score is None or chosen_step != state.best_step else f" (mean R@1 on val {100 * state.best_score:.2f})"
    )
    mining, effect = "none", mining_effect(config, state, chosen_step)
    if config.mining is not None and effect is not None and effect.is_trained_with:
        what = {
            "columns": "hard captions per image",
            "images": "hard images per caption",
            "neighbours": "neighbours per image, in one batch",
        }
        every = (
            f"{config.mining.mine_every_steps} steps" if config.mining.mine_every_steps else f"{config.mining.mine_every_epochs} epoch(s)"
        )
        mining = f"up to {config.mining.negatives_per_image} {what[config.mining.form]}, refreshed every {every}"
    begun_line = f"- Began at: `{config.train.begin_at}`, with its weights and optimizer state.\n" if config.train.begin_at else ""
    said = "".join(f"- Mining: {sentence}\n" for sentence in effect.sentences()) if effect is not None else ""
    weights_line = average_line(config.train) + (f"- Weights: {weights}\n" if weights else "")
    base_line = f"base_model: {without_revision(config.model.base)}\n" if config.model.base and not Path(config.model.base).exists() else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n"
        f"tags: [siglip, image-text-retrieval]\n{base_line}---\n\n"
        f"# {config.name}\n\n"
        f"A SigLIP model tuned for image-text retrieval, from `{with_revision(config.base)}` (weights {state.base_sha256[:16]}).\n\n"
        f"- Method: {how}; sigmoid loss, batch {config.train.batch_size}, {config.train.precision}; mined negatives: {mining}.\n{said}"
        f"- Data: {with_data_revision(config.data.source)}, split `{config.data.train_split}`.\n"
        f"- Checkpoint: step {chosen_step} of {config.train.max_steps}{score}.\n{begun_line}{weights_line}\n"
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


def load_checkpoint(config: JobConfig, which: str, tuned: TunedModel | None = None) -> tuple[TunedModel, int, State]:
    """The best, the last or a numbered checkpoint of a run, in `tuned` where it is given; returns and raises as `load_chosen`."""
    return load_chosen(config, which, config.base, lambda: tuned or build_model(config.model, config.base))


def export_checkpoint(config: JobConfig, which: str, folder: Path, tuned: TunedModel | None = None) -> int:
    """Export one checkpoint of a run. Returns its step.

    Args:
        tuned: the model that the run holds in memory, on the CPU; its weights are replaced. None: it is built from the base.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged; or the base has changed.
        OSError: the export cannot be written.
    """
    tuned, step, newest = load_checkpoint(config, which, tuned)
    export_model(tuned, folder, model_card(config, newest, step), config.export)
    return step

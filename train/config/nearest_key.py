"""The key that a person may have meant by one that is not known: of the same section, of another, or by the field's other word for it."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "name": ("run_name", "experiment", "exp_name", "output", "output_dir", "out_dir"),
    "seed": ("random_seed", "random_state"),
    "runs_folder": ("runs_dir", "log_dir", "logs", "save_dir"),
    "data.source": ("data_path", "dataset", "dataset_name", "manifest", "csv", "train_data", "train_file", "path", "data_dir"),
    "data.image_root": ("image_dir", "images_dir", "img_dir", "image_folder", "image_path", "data_root"),
    "data.columns": ("image_column", "caption_column", "csv_img_key", "csv_caption_key", "img_key", "caption_key", "text_column"),
    "data.num_workers": ("workers", "dataloader_num_workers", "preprocessing_num_workers"),
    "data.split.val": ("val_ratio", "val_size", "valid_size", "val_fraction", "validation_split"),
    "data.split.test": ("test_ratio", "test_size", "test_fraction"),
    "data.val_split": ("validation", "dev_split", "val_data"),
    "model.base": ("model_name", "model_name_or_path", "pretrained", "checkpoint", "base_model", "model_id", "weights", "backbone"),
    "model.freeze": ("frozen", "freeze_vision", "freeze_image", "lock_image", "freeze_text", "lock_text"),
    "model.gradient_checkpointing": ("grad_checkpointing", "activation_checkpointing"),
    "model.lora": ("peft", "adapter", "adapters"),
    "model.lora.rank": ("r", "lora_r", "lora_rank"),
    "model.lora.alpha": ("lora_alpha",),
    "model.lora.dropout": ("lora_dropout",),
    "train.batch_size": ("bs", "batch", "global_batch_size", "train_batch_size", "per_device_train_batch_size"),
    "train.micro_batch_size": ("microbatch", "accum_freq", "gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"),
    "train.learning_rate": ("lr", "rate", "base_lr", "peak_lr", "max_lr"),
    "train.image_learning_rate": ("vision_lr", "image_lr", "visual_lr"),
    "train.text_learning_rate": ("text_lr",),
    "train.optimizer": ("optim", "optimiser", "opt"),
    "train.layer_decay": ("llrd", "layerwise_lr_decay", "layer_lr_decay", "lr_layer_decay", "lr_decay_rate"),
    "train.epochs": ("num_epochs", "num_train_epochs", "n_epochs", "max_epochs"),
    "train.max_steps": ("steps", "num_steps", "max_train_steps", "total_steps", "iterations", "max_iter"),
    "train.warmup_steps": ("warmup", "warmup_ratio", "num_warmup_steps", "warmup_share"),
    "train.weight_decay": ("wd", "decay"),
    "train.betas": ("beta1", "beta2", "adam_beta1", "adam_beta2"),
    "train.epsilon": ("eps", "adam_eps", "adam_epsilon"),
    "train.ema_decay": ("ema", "model_ema", "model_ema_decay", "use_ema", "ema_momentum"),
    "train.max_grad_norm": ("grad_clip", "clip_grad", "gradient_clip_val", "grad_clip_norm", "max_norm"),
    "train.precision": ("fp16", "bf16", "amp", "mixed_precision", "dtype", "torch_dtype"),
    "train.eval_every_steps": ("eval_steps", "eval_every", "val_every", "val_frequency", "eval_interval"),
    "train.checkpoint_every_steps": ("save_steps", "save_every", "save_frequency", "checkpoint_every", "save_interval"),
    "train.keep_checkpoints": ("save_total_limit", "max_checkpoints"),
    "train.begin_at": ("resume", "resume_from", "resume_from_checkpoint", "ckpt_path"),
    "mining": ("hard_negatives", "negatives", "hard_negative_mining"),
    "mining.negatives_per_image": ("num_negatives", "num_hard_negatives"),
    "rerank.model": ("reranker", "cross_encoder", "blip"),
    "rerank.top_k": ("topk", "k", "rerank_top_k"),
    "wandb.project": ("wandb_project",),
}
"""Our key -> what other trainers call it."""
_BY_OTHER_WORD = {word: key for key, words in OTHER_WORDS.items() for word in words}


def nearest_key(kind: type[BaseModel], location: Sequence[int | str]) -> str | None:
    """The nearest key that is known, alone where it is of the same section, else with its sections; None: none is near."""
    *parents, last = [str(part) for part in location if isinstance(part, str)]
    last, known = last.lower().replace("-", "_"), [key for key, _ in keys_of(kind)]
    here = ".".join([*parents, ""])
    own = {key[len(here) :] for key in known if key.startswith(here) and "." not in key[len(here) :]}
    asked = here + last
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    other = _BY_OTHER_WORD.get(last)
    found = None
    if last in own:  # but for capitals or dashes
        found = asked
    elif other in known and not elsewhere:
        found = other
    elif near := difflib.get_close_matches(last, own, n=1):
        found = here + near[0]
    elif elsewhere:
        found = max(elsewhere, key=lambda key: difflib.SequenceMatcher(None, asked, key).ratio())
    elif near := difflib.get_close_matches(last, {key.rpartition(".")[2] for key in known}, n=1, cutoff=0.75):
        found = next(key for key in known if key.rpartition(".")[2] == near[0])
    return found.removeprefix(here) if found is not None and found.rpartition(".")[0] == here.rstrip(".") else found


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key, "train.batch_size", with its field; a section before its keys, those of a list's items without their number."""
    for name, field in kind.model_fields.items():
        yield prefix + name, field
        if section := section_of(field.annotation):
            yield from keys_of(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, may be, or is a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)

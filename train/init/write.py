"""A first configuration for a data set, as commented YAML: what was found decides, and every line says why."""

import json
import os

from train.config.load import SMALL, read_yaml
from train.config.sizes import batch_size_for, epochs_for
from train.init.survey import Survey

FEW_IMAGES = 20_000
"""Below it the upper end of the usual rates, for there are few steps."""
_LINE = 44
_NOT_TEXTS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def configuration(found: Survey, name: str, image_root: str | None, base: str) -> str:
    """The text of a YAML file for what was found."""
    num = found.num_train
    batch_size, epochs = batch_size_for(num), min(read_yaml(SMALL)["train"]["epochs"], epochs_for(num))
    rate = "1.0e-5" if num < FEW_IMAGES else "5.0e-6"
    lines = [
        f"# A first configuration for {found.source}: {found.num_images:,} images, {found.num_captions:,} captions.",
        f"#   ./launch.sh {name}.yaml",
        "# Every key is explained in docs/configuration.md.",
        _pair(0, "name", name, f"the run's folder is runs/{name}"),
        "seed: 0",
        "model:",
        _pair(2, "base", base, "another checkpoint: a folder, or an id of the hub"),
        "data:",
        _pair(2, "source", _absolute(found.source)),
    ]
    if image_root is not None:
        lines.append(_pair(2, "image_root", _absolute(image_root)))
    if found.columns:
        pairs = ", ".join(f"{ours}: {_scalar(theirs)}" for ours, theirs in found.columns.items())
        lines.append(_line(2, f"columns: {{{pairs}}}", "ours: the file's"))
    lines += _splits(found)
    if found.missing:
        lines.append(_pair(2, "skip_missing", True, f"{len(found.missing):,} picture(s) are missing, e.g. {found.missing[0]}"))
    if found.broken:
        lines.append(_pair(2, "skip_broken", True, f"{len(found.broken)} of {found.num_tried} tried do not decode"))
    lines += [f"  # columns: {{group: ...}}   if these are pictures of one thing, with common captions: {group}" for group in found.groups]
    lines += [
        "train:",
        _pair(2, "epochs", epochs, "more cost time only: the best checkpoint on val is exported"),
        _pair(2, "batch_size", batch_size, f"for about {num:,} train images"),
        _line(2, f"learning_rate: {rate}", "for all weights; 5.0e-5 with model.lora"),
        _line(2, "scale_bias_learning_rate: 1.0e-3", "the bias was learnt at batch 32k, where positives are rarer"),
        _line(2, "weight_decay: 1.0e-4", ""),
        _pair(2, "precision", "fp32", "on a GPU: bf16, faster and smaller"),
        _line(2, "random_crop_min_area: 0.9", "a little off each picture, anew in each epoch"),
        _line(2, "eval_every_steps: 0.1", "of the run"),
        _line(2, "checkpoint_every_steps: 0.1", "of the run"),
        _pair(2, "keep_checkpoints", 1, "the best is kept too"),
        _pair(0, "mining", None, "off: no result shows that it helps on any data; {} tries it (docs/mining.md)"),
        _pair(0, "rerank", None, "to measure a reranker too: {model: Salesforce/blip-itm-base-coco}"),
    ]
    if found.repeats_texts:
        share = f"{found.num_texts:,} different texts among {found.num_captions:,} captions"
        lines += ["evaluation:", _pair(2, "gallery", "different", f"{share}: every text once in the gallery")]
    return "\n".join(lines) + "\n"


def _splits(found: Survey) -> list[str]:
    names = {str(name): count for name, count in found.splits.items() if name is not None}
    if not names:
        return [_line(2, "split: {val: 0.1, test: 0.1, seed: 0}", "there is none: made by a hash of each image's id, or its group")]
    lines = [f"  # splits: {', '.join(f'{name} {count:,}' for name, count in names.items())}"]
    for key, known in (("train", ("training",)), ("val", ("validation", "valid", "dev")), ("test", ("testing",))):
        if key in names:
            continue
        other = next((name for name in names if name.lower() in known), None)
        lines.append(_pair(2, f"{key}_split", other, "" if other is not None else f"no split {key}"))
    return lines


def _pair(indent: int, key: str, value: object, comment: str = "") -> str:
    return _line(indent, f"{key}: {_scalar(value)}", comment)


def _scalar(value: object) -> str:
    """A value as YAML; a text in quotes where it would read as anything else."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    text = str(value)
    is_plain = text != "" and all(letter.isalnum() or letter in "/._-" for letter in text) and (text[0].isalpha() or text[0] == "/")
    return text if is_plain and text.lower() not in _NOT_TEXTS else json.dumps(text, ensure_ascii=False)


def _line(indent: int, text: str, comment: str) -> str:
    text = " " * indent + text
    return f"{text:<{_LINE}} # {comment}" if comment else text


def _absolute(path: str) -> str:
    """A path that leads to the same place from anywhere; the id of a data set on the hub stays."""
    return os.path.abspath(os.path.expanduser(path)) if os.path.exists(os.path.expanduser(path)) or any(c in path for c in "*?[") else path


"""The model card of a tuned SigLIP: how to use it, how it was made, what it reaches and forgot, and what it cannot do.

It is written with the export, and again with the figures once the final evaluation has read that very export.
"""

import json
from collections.abc import Mapping
from typing import Any

from eval.encoder.inputs import SiglipInputs
from train.config.evaluation import BASELINE, SUBJECT
from train.config.export import ExportConfig
from train.config.job import JobConfig
from train.engine.card import (
    HERE,
    Base,
    commit_of,
    data_words,
    index_results,
    metadata,
    model_words,
    no_gain,
    recipe,
    result_lines,
    shown_name,
)
from train.engine.checkpoint import State
from train.engine.export_folder import average_line
from train.export.measure import EXPORTS, exports_lines
from train.siglip.mining_effect import MiningEffect, mining_effect
from train.siglip.watch import RETENTION, retention_line

TAGS = ("siglip", "image-text-retrieval", "sentence-transformers")
PIPELINE = "zero-shot-image-classification"
_PIPELINE_TOKENS = 64
"""To which transformers' pipeline pads captions for any SigLIP (4.56 to 5.23, pipelines/zero_shot_image_classification.py)."""
_SEARCH = """\
```python
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

{here}
folder, sentence = Path("pictures"), "a red kite over a beach"

model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
length = model.config.text_config.max_position_embeddings


def unit(features):  # transformers 4 gives the tensor itself, transformers 5 an output that holds it
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
found = []
with torch.no_grad():
    for start in range(0, len(files), 32):
        pictures = [Image.open(path).convert("RGB") for path in files[start : start + 32]]
        found.append(unit(model.get_image_features(**processor(images=pictures, return_tensors="pt"))))
    words = processor(text=[sentence], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    cosines = (unit(model.get_text_features(input_ids=words["input_ids"])) @ torch.cat(found).T)[0]
for cosine, place in zip(*cosines.topk(min(5, len(files)))):
    print(f"{{cosine:.4f}}  {{files[place]}}")
```
"""
_SENTENCES = """\
```python
from sentence_transformers import SentenceTransformer

{here}
model = SentenceTransformer(name)
embeddings = model.encode(["a red kite over a beach", "a kite in the wind"])  # pictures of Pillow too; of length 1
```
"""


def model_card(
    config: JobConfig,
    state: State,
    chosen_step: int,
    inputs: SiglipInputs,
    *,
    weights: str = "",
    report: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of an export, with the metadata the hub reads; it claims mined negatives only for weights that saw some.

    Args:
        state: of the newest checkpoint.
        chosen_step: of the checkpoint that is exported.
        inputs: how the model reads captions and pictures.
        weights: a sentence on what was done with the checkpoint's weights, for its figures are then not the model's; empty: nothing.
        report: the record of the final report on these very weights; None: there is none.
    """
    base = Base.of(config.model.base)
    results = index_results(report, SUBJECT) if report is not None else []
    effect = mining_effect(config, state, chosen_step)
    languages = config.export.language
    missed = "" if weights else no_gain(state, chosen_step, config.train.begin_at)
    known: dict[str, Any] = {"results": results, "language": languages, "commit": commit_of(report)}
    parts = [
        metadata(config.name, base, pipeline=PIPELINE, tags=TAGS, source=config.data.source, **known),
        f"# {config.name}\n\n",
        f"**{missed}**\n\n" if missed else "",
        f"A SigLIP model tuned for image-text retrieval, from {model_words(config.base, state.base_sha256)}.\n\n",
        usage(inputs),
        "## How it was made\n\n",
        base.line(),
        _made_lines(config, state, chosen_step, effect, weights, commit_of(report)),
        "\n## Results\n\n",
        _results(report, weights, config.export),
        "## What it forgot\n\n",
        _forgotten(report),
        limits(inputs, f"The languages it knows are those of its captions: {', '.join(languages) or 'they were not looked at'}."),
        "## Recipe\n\nEvery key that decides what is learnt; files are known by their content, and are left out.\n\n```json\n",
        json.dumps(recipe(config), indent=1),
        "\n```\n",
    ]
    return "".join(parts)


def usage(inputs: SiglipInputs) -> str:
    """How a person uses the model: search a folder of pictures, embed sentences, and what pads captions as it was trained."""
    length = inputs.num_tokens
    pipeline = f"Transformers' pipeline `{PIPELINE}` pads to {_PIPELINE_TOKENS} tokens for any SigLIP"
    if length == _PIPELINE_TOKENS:
        pipeline += ', which is right here (for whole sentences give it `hypothesis_template="{}"`). '
    elif length < _PIPELINE_TOKENS:
        pipeline += ", and this text tower refuses them. "
    else:
        pipeline += ", which is too short here: its scores are other ones. Do not use it. "
    return (
        "## How to use it\n\nSearch a folder of pictures with a sentence (transformers 4.56 or newer):\n\n"
        + _SEARCH.format(here=HERE)
        + "\nOr embed with sentence-transformers (6.2 or newer):\n\n"
        + _SENTENCES.format(here=HERE)
        + f"\nCaptions are padded to {length} tokens, without a mask: other padding gives other embeddings. `AutoProcessor` of "
        f"transformers 4.57 and newer pads so by itself, whatever `padding` says. {pipeline}Transformers 4.56, and the tokenizer without "
        f'the processor, need `padding="max_length", max_length={length}, truncation=True`.\n\n'
    )


def limits(inputs: SiglipInputs, *more: str) -> str:
    """What the model cannot do, whatever it was made of."""
    punctuation = "punctuation is kept" if inputs.keeps_punctuation else "punctuation is dropped"
    side = inputs.image_size
    lines = [
        f"Captions are read in lower case, {punctuation}, and cut after {inputs.num_tokens} tokens; pictures are resized to "
        f"{side} x {side} pixels, whatever their proportions.",
        "Figures hold for the data and the split they name; of other pictures and captions only the retention sets say something.",
        "A score ranks; it is no probability of a match.",
        *more,
    ]
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines) + "\n"


def _made_lines(
    config: JobConfig, state: State, chosen_step: int, effect: MiningEffect | None, weights: str, commit: str | None
) -> str:
    how = f"LoRA (rank {config.model.lora.rank}), merged" if config.model.lora else "full fine-tuning"
    if config.model.freeze:
        how += f", frozen: {', '.join(config.model.freeze)}"
    is_best = not weights and state.best_score is not None and chosen_step == state.best_step
    score = f" (mean R@1 on val {100 * (state.best_score or 0):.2f})" if is_best else ""
    begun_at = config.train.begin_at
    lines = [
        f"Method: {how}; sigmoid loss, batch {config.train.batch_size}, {config.train.precision}; mined negatives: "
        f"{_mined_words(config, effect)}.",
        *(f"Mining: {sentence}" for sentence in (effect.sentences() if effect is not None else ())),
        f"Data: {data_words(config.data.source, state.data_sha256, commit)}, split `{config.data.train_split}`.",
        f"Checkpoint: step {chosen_step} of {config.train.max_steps}{score}.",
        *([f"Began at: `{shown_name(begun_at)}`, with its weights and optimizer state."] if begun_at else ()),
    ]
    return "".join(f"- {line}\n" for line in lines) + average_line(config.train) + (f"- Weights: {weights}\n" if weights else "")


def _mined_words(config: JobConfig, effect: MiningEffect | None) -> str:
    """Where the negatives come from: what was mined, how often, and who looked at it."""
    mining, asked = config.mining, config.cross_encoder_model
    if mining is None or effect is None or not effect.is_trained_with:
        return "none"
    what = {
        "columns": "hard captions per image",
        "images": "hard images per caption",
        "neighbours": "neighbours per image, in one batch",
    }
    every = f"{mining.mine_every_steps} steps" if mining.mine_every_steps else f"{mining.mine_every_epochs} epoch(s)"
    checked = "" if asked is None else f", looked at by the cross-encoder `{shown_name(asked)}`"
    return f"up to {mining.negatives_per_image} {what[mining.form]}, refreshed every {every}{checked}"


def _results(report: Mapping[str, Any] | None, weights: str, forms_here: ExportConfig) -> str:
    """forms_here: what the folder holds besides float32; a report may know more."""
    if report is None:
        what = "these weights were" if weights else "no final report on these very weights is there: they were"
        return f"None: {what} not measured when they were exported.\n\n"
    reranked = [stage for stage, found in report["stages"].items() if "top_k" in found.get("cost", {})]
    stages = [stage for stage in (BASELINE, SUBJECT, *reranked) if stage in report["stages"]]
    named = ", ".join(f"`{stage}`" for stage in reranked)
    depths = {report["stages"][stage]["cost"]["top_k"] for stage in reranked}
    depth = f" {named}: the first {' or '.join(map(str, sorted(depths)))} reranked by a cross-encoder." if reranked else ""
    known = ["", ".", *forms_here.folders]
    here = [one for one in report.get(EXPORTS.key, ()) if one["model"].partition("/")[0] in known]
    forms = "".join(f"- {line}.\n" for line in exports_lines(here))
    forms = f"In other precisions and formats of this folder, on the same split:\n\n{forms}\n" if forms else ""
    return f"{result_lines(report, stages)}\n`{BASELINE}`: before tuning; `{SUBJECT}`: this model.{depth}\n\n{forms}"


def _forgotten(report: Mapping[str, Any] | None) -> str:
    watched = report.get(RETENTION.key) if report is not None else None
    if not watched:
        return "Not measured: no retention set was watched and reported for these weights.\n\n"
    return "".join(f"- {retention_line(one['name'], one)}\n" for one in watched) + "\n"

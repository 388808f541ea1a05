"""A cross-encoder that was published as a pickle, written as a folder of safetensors and read back."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.atomic import new_folder
from eval.encoder.hub import HubModel, fetch_weights, model_folder
from eval.encoder.model_files import check_model_files
from eval.encoder.pickled import pickled_bytes, read_pickled
from eval.encoder.tokenizer import rewrite_tokenizer_config
from eval.errors import UserError, named, writing
from rerank.convert.hub_weights import convert_hub_folder
from rerank.scorers.albef.checkpoint import build_albef
from rerank.scorers.albef.model import AlbefConfig, AlbefCrossEncoder
from rerank.scorers.albef.release import albef_release
from rerank.scorers.load import load_scorer
from rerank.scorers.supported import check_cross_encoder

DEFAULT_TOKENIZER = "bert-base-uncased"
_VOCABULARIES = ("tokenizer.json", "vocab.txt")


def convert(source: str, output: Path, *, tokenizer: str | None = None, image_size: int | None = None) -> list[str]:
    """Write the folder, and read it back as a scorer before it takes its name.

    Args:
        source: ALBEF's .pth; or a folder, or a hub id, in the hub's format.
        tokenizer: ALBEF only: whose vocabulary it was trained with; by default bert-base-uncased.
        image_size: ALBEF only: pixels of a side; by default the file's own.

    Returns:
        What was done, a line each.

    Raises:
        UserError: the source cannot be read without unpickling objects, is no cross-encoder, or lacks weights; or the output is not empty.
        WriteError: the output cannot be written.
    """
    if not Path(source).is_file() and (tokenizer, image_size) != (None, None):
        raise UserError(f"--tokenizer and --image-size are for ALBEF's .pth; {source} is no file, and a hub folder has its own")
    with writing(output), new_folder(output, pickled_bytes(Path(source))) as folder:
        if Path(source).is_file():
            lines = convert_albef(Path(source), folder, tokenizer or DEFAULT_TOKENIZER, image_size)
        else:
            found = _hub_folder(source)
            check_cross_encoder(str(found))  # before any work: a converted captioner or text-text reranker would be of no use
            lines = convert_hub_folder(found, folder)
        try:
            scorer = load_scorer(str(folder), device="cpu")
        except UserError as error:
            raise UserError(f"{source}: what it holds cannot rerank. {str(error).replace(str(folder), source)}") from error
    return [*lines, f"{output}: read back as {scorer.name}, which reads {scorer.reads}"]


def convert_albef(source: Path, folder: Path, tokenizer: str, image_size: int | None = None) -> list[str]:
    """Write ALBEF's .pth into `folder`; returns what was written and dropped, a line each.

    Raises:
        UserError: the file holds objects, is no ALBEF, lacks weights, or the tokenizer cannot be loaded or is another.
        OSError, SafetensorError: a file cannot be written.
    """
    config, released, dropped = albef_release(read_pickled(source), str(source), image_size)
    bert_tokenizer = _tokenizer(tokenizer, config)
    with torch.device("meta"):
        expected = {name for name, _ in AlbefCrossEncoder(config).named_parameters()}
    unexpected = sorted(released.keys() - expected)
    tensors = {name: tensor.float().contiguous() for name, tensor in released.items() if name in expected}
    build_albef(config, tensors, str(source))  # names all that is missing or misshapen
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2), encoding="utf-8")
    size = config.vision.image_size
    BlipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    bert_tokenizer.save_pretrained(folder)
    rewrite_tokenizer_config(folder)
    lines = [f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()) / 1e6:.1f} M parameters, {size} px"]
    lines += [f"dropped: {len(names)} of {kind} ({names[0]}, ...)" for kind, names in dropped.items()]
    return lines + ([f"dropped: {len(unexpected)} that ALBEF's cross-encoder does not have: {', '.join(unexpected)}"] if unexpected else [])


def _tokenizer(name: str, config: AlbefConfig) -> BertTokenizer:
    """The tokenizer whose vocabulary the text tower has."""
    if Path(name).exists() and not any((Path(name) / file).is_file() for file in _VOCABULARIES):
        raise UserError(f"--tokenizer {name}: expected a folder with vocab.txt or tokenizer.json")
    try:
        with named({"model": "--tokenizer"}):
            check_model_files(name)
            folder = model_folder(name)
        if not any((folder / file).is_file() for file in _VOCABULARIES):
            raise OSError("there is no such vocabulary")  # transformers would invent a tokenizer of five tokens
        tokenizer = BertTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--tokenizer {name}: could not be loaded ({str(error).splitlines()[0]}). ALBEF's file holds no vocabulary: "
            "on a machine without the hub give --tokenizer FOLDER with bert-base-uncased's vocab.txt or tokenizer.json"
        ) from error
    if len(tokenizer) != config.text.vocab_size:
        raise UserError(
            f"--tokenizer {name}: it has {len(tokenizer)} tokens, and the text tower has {config.text.vocab_size}; ALBEF was trained with "
            f"{DEFAULT_TOKENIZER}"
        )
    return tokenizer


def _hub_folder(source: str) -> Path:
    """The folder, or the hub's files under that id."""
    if Path(source).is_dir():
        return Path(source)
    if HubModel.parse(source) is None or "/" not in source:
        raise UserError(f"{source}: expected a .pth file, a folder in the hub's format, or a hub id; there is no such file or folder")
    fetch_weights(source)
    return model_folder(source)

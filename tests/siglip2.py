"""A small SigLIP 2 with random weights in the hub's own file formats: a SigLIP config, and Gemma's tokenizer with its odd defaults."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
NUM_TOKENS, IMAGE_SIZE = 16, 32
# As google/siglip2-base-patch16-224 has it: transformers takes it for a plain Gemma tokenizer, which does not know do_lower_case.
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "GemmaTokenizer",
    "processor_class": "SiglipProcessor",
    "add_bos_token": False,
    "add_eos_token": True,
    "do_lower_case": True,
    "model_max_length": 64,
    "model_input_names": ["input_ids"],
    "padding_side": "right",
} | {f"{token.strip('<>')}_token": token for token in SPECIAL}


def write_siglip2(folder: Path, captions: Iterable[str]) -> Path:
    """Write a checkpoint of two layers, 24 wide; weights so large that every input moves the embedding."""
    folder.mkdir(parents=True)
    num_pieces = _write_tokenizer(folder, captions)
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = tower | ids | {"vocab_size": num_pieces, "max_position_embeddings": NUM_TOKENS, "projection_size": 24}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=tower | {"image_size": IMAGE_SIZE, "patch_size": 8}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, captions: Iterable[str]) -> int:
    """Learn byte-fallback pieces, capitals and marks among them, and write tokenizer.json and its config. Returns their number."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!'-")
    trainer = trainers.BpeTrainer(vocab_size=440, special_tokens=tokens, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)])
    record = json.loads(tokenizer.to_str())
    record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] in SPECIAL]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return tokenizer.get_vocab_size()

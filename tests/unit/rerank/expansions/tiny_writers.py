"""Tiny language models with random weights: a T5 and a Llama, in the hub's own file formats. What they say is nonsense."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "dog",
    "cat",
    "hound",
    "runs",
    "sits",
    "on",
    "paraphrase",
    ":",
    ".",
    "in",
    "other",
    "words",
    "Caption",
    "same",
]
SPECIAL = ["</s>", "<unk>", "<pad>"]


def write_tokenizer(folder: Path, *, end: bool) -> PreTrainedTokenizerFast:
    """One token a word; with `end` a text is ended by </s> and padded, as T5's is."""
    vocabulary = {word: number for number, word in enumerate((SPECIAL if end else SPECIAL[:2]) + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>" if end else None, eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def write_tiny_t5(folder: Path) -> Path:
    """A seq2seq model that talks on."""
    write_tokenizer(folder, end=True)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(SPECIAL + WORDS),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=2,
        pad_token_id=2,
        eos_token_id=0,
    )
    _save(T5ForConditionalGeneration(config), folder)
    return folder


def write_tiny_llama(folder: Path, *, positions: int = 128) -> Path:
    """A causal model without a padding token; its own settings say to draw, which is not to be done."""
    write_tokenizer(folder, end=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL[:2] + WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20)
    _save(model, folder)
    return folder


def _save(model: torch.nn.Module, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.8)
    model.save_pretrained(folder)

"""A small SigLIP with random weights, in the hub's format, with a tokenizer trained on the train captions."""

import io
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
import torch
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

from eval.atomic import replaced_folder
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from train.config.model import ScratchConfig


def write_scratch(folder: Path, config: ScratchConfig, dataset: RetrievalSet, seed: int) -> None:
    """Write a checkpoint folder: random weights from the seed; scale 10 and bias -10 as SigLIP starts (transformers: 1 and 0).

    Raises:
        UserError: the captions are too few for a tokenizer.
        OSError: the folder cannot be written.
    """
    with replaced_folder(folder) as temporary:
        tokenizer = learn_tokenizer(temporary, config, dataset)
        tower = {
            "hidden_size": config.width,
            "intermediate_size": 4 * config.width,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
        }
        ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        text = tower | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": config.num_tokens, "projection_size": config.width}
        vision = tower | {"image_size": config.image_size, "patch_size": config.patch_size}
        torch.manual_seed(seed)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        with torch.no_grad():
            model.logit_scale.fill_(torch.log(torch.tensor(10.0)))
            model.logit_bias.fill_(-10.0)
        model.save_pretrained(temporary)
        size = {"height": config.image_size, "width": config.image_size}
        SiglipInputs(tokenizer, SiglipImageProcessorPil(size=size), config.num_tokens, config.image_size).save(temporary)
        (temporary / "spiece.tmp").unlink(missing_ok=True)


def learn_tokenizer(folder: Path, config: ScratchConfig, dataset: RetrievalSet) -> SiglipTokenizer:
    """SentencePiece unigram pieces over the captions, lower-cased and stripped of punctuation as SiglipTokenizer will do."""
    model = io.BytesIO()
    lowered = SimpleNamespace(do_lower_case=True, remove_punctuation=partial(SiglipTokenizer.remove_punctuation, None))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(SiglipTokenizer.canonicalize_text(lowered, caption) for caption in dataset.captions),
            model_writer=model,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            model_type="unigram",
            pad_id=-1,
            bos_id=-1,
            eos_id=1,
            unk_id=2,
            unk_surface=" ",
            unk_piece="<unk>",
            control_symbols=["<pad>"],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"model.scratch: no tokenizer of {config.vocab_size} pieces can be learnt from {dataset.num_captions} captions ({error})"
        ) from error
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=config.num_tokens)

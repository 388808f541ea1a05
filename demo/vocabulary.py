"""Vocabularies: the processors of both checkpoints, made from the words of the captions and saved in the hub's own formats."""

import io
import random
import re
import string
import tempfile
from pathlib import Path

import sentencepiece
from transformers import BertTokenizer, BlipProcessor, SiglipProcessor, SiglipTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from demo.drawing import SIDE
from demo.phrases import complete_caption, vocabulary
from demo.scenes import random_scene
from eval.encoder.tokenizer import rewrite_tokenizer_config

# The longest caption takes 22 tokens and the end token.
NUM_TEXT_TOKENS = 24
# The two ends, 22 words and the commas between them fit well within BLIP's own limit.
NUM_BLIP_TOKENS = 35
NUM_PIECES = 300
SPECIAL_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SQUARE = {"height": SIDE, "width": SIDE}


def siglip_processor() -> SiglipProcessor:
    """Train the SentencePiece model on drawn captions: whole words where captions use them, letters for anything else."""
    rng = random.Random(0)
    lines = [complete_caption(random_scene(rng, "past"), rng, "new").replace(",", "") for _ in range(4000)]
    lines += [" ".join(string.ascii_lowercase + string.digits)] * 20 + [" ".join(vocabulary())] * 200
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=NUM_PIECES,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(model.getvalue())
        tokenizer = SiglipTokenizer(f"{folder}/spiece.model", model_max_length=NUM_TEXT_TOKENS)
    return SiglipProcessor(SiglipImageProcessorPil(size=SQUARE), tokenizer)


def blip_processor() -> BlipProcessor:
    """Make a lower-case WordPiece tokenizer: every word of the captions, and letters for anything else."""
    letters = list(string.ascii_lowercase + string.digits + ",")
    words = [*SPECIAL_WORDS, *letters, *(f"##{letter}" for letter in letters[:-1])]
    words += [word for word in vocabulary() if word not in words]
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)}, model_max_length=NUM_BLIP_TOKENS)
    return BlipProcessor(BlipImageProcessorPil(size=SQUARE), tokenizer)


def blip_text(caption: str) -> str:
    """Clean a caption as BLIP's authors do (salesforce/BLIP, data/utils.py: pre_caption): lower case, no ``.!"()*#:;~``, 30 words."""
    return " ".join(re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()[:30])


def save_processor(processor: SiglipProcessor | BlipProcessor, folder: Path) -> None:
    """Write a processor with every file that the hub's checkpoints have, so that old and new readers both find theirs.

    The image processors are saved under their public names: with torchvision they load as the fast ones, without it as Pillow's.
    """
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    if isinstance(processor, BlipProcessor):
        numbers = processor.tokenizer.get_vocab()
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(numbers, key=numbers.__getitem__)), encoding="utf-8")
    # A mask would change what the text tower pools.
    rewrite_tokenizer_config(folder, **({"model_input_names": ["input_ids"]} if isinstance(processor, SiglipProcessor) else {}))

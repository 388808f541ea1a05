"""Our ALBEF against its published code, on random weights: the same .pth through both, the differences of the scores printed.

    git clone https://github.com/salesforce/ALBEF ../ALBEF
    python -m benchmarks.albef_equality ../ALBEF --output results/albef-equality.md

None of ALBEF's code is in this repository. A few names that it imports are put in their place (benchmarks/albef_checkout.py). Both sides
begin with a picture and captions: their side cleans, tokenises, pads to 30 tokens and runs text, vision and fusion as Retrieval.py does, a
pair at a time; ours reads the .pth through `python -m rerank.convert`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

from benchmarks.albef_checkout import import_albef
from benchmarks.conclusion import title_lines
from rerank.convert.convert import convert
from rerank.scorers.albef.scorer import MAX_TOKENS, AlbefScorer

CAPTIONS = [
    "A red circle, above a blue square.",
    "the dog's ball - well-worn/old - sits by <person>'s foot!",
    "a",
    "",
    "two dogs run; one cat sleeps (on the sofa), a third one watches: it is #1 ~ the best * of all?",
    " ".join(["unbelievably long captions are cut"] * 9),
    'A caf\u00e9 in Z\u00fcrich, "quoted"\ttabbed  and\nbroken',
    "\u72d7 runs \u00bd naïve",
]
ANIMALS = ("dog", "cat", "person", "dogs run")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def write_vocabulary(path: Path, num_tokens: int = 30522) -> None:
    """A WordPiece vocabulary of letters, some words and unused entries."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = [
        "a",
        "the",
        "red",
        "blue",
        "circle",
        "square",
        "dog",
        "dogs",
        "cat",
        "runs",
        "run",
        "above",
        "one",
        "cut",
        "person",
        "it",
        "is",
    ]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(letters + words), *(f"##{letter}" for letter in letters), "##s"]
    known = list(dict.fromkeys(known))
    path.write_text("\n".join(known + [f"[unused{number}]" for number in range(num_tokens - len(known))]) + "\n", encoding="utf-8")


def randomise(model: nn.Module) -> None:
    """Weights large enough that picture and caption both move the score."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                parameter.normal_(std=0.5 if "embed" in name or "token" in name else 1.2 / parameter.shape[-1] ** 0.5)


class SmallAlbef(nn.Module):
    """The published classes put together as model_retrieval.ALBEF does, with sizes of our choice (its own are fixed)."""

    def __init__(self, published: Any, config: Any, image_size: int) -> None:
        super().__init__()
        self.visual_encoder = published.VisionTransformer(
            img_size=image_size, patch_size=16, embed_dim=128, depth=2, num_heads=2, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )
        self.text_encoder = published.BertModel(config, add_pooling_layer=False)
        self.itm_head = nn.Linear(config.hidden_size, 2)


def small(published: Any, checkout: Path, image_size: int) -> nn.Module:
    """Two vision layers, 2 + 2 text layers, 128 wide."""
    config = published.BertConfig.from_json_file(str(checkout / "configs" / "config_bert.json"))
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "num_hidden_layers": 4, "fusion_layer": 2}
    for name, value in (sizes | {"encoder_width": 128}).items():
        setattr(config, name, value)
    return SmallAlbef(published, config, image_size)


def base(published: Any, checkout: Path, image_size: int) -> nn.Module:
    """The published model at its own sizes, momentum copies and queues included."""
    config = {"distill": True, "embed_dim": 256, "vision_width": 768, "image_res": image_size, "temp": 0.07, "queue_size": 16}
    config |= {"momentum": 0.995, "bert_config": str(checkout / "configs" / "config_bert.json")}
    return published.ALBEF(config=config, text_encoder="random", tokenizer=None)


def prepared(image: Image.Image, size: int) -> torch.Tensor:
    """The picture as the published transform makes it, shape (1, 3, size, size)."""
    pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy(((pixels - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1))[None]


def fused_logits(model: Any, text_feats: torch.Tensor, attention_mask: torch.Tensor, image_feats: torch.Tensor) -> torch.Tensor:
    """The fusion layers and the matching head as Retrieval.py calls them, shape (C, 2)."""
    output = model.text_encoder(
        encoder_embeds=text_feats,
        attention_mask=attention_mask,
        encoder_hidden_states=image_feats,
        encoder_attention_mask=torch.ones(image_feats.shape[:-1], dtype=torch.long),
        return_dict=True,
        mode="fusion",
    )
    return model.itm_head(output.last_hidden_state[:, 0, :])


@torch.no_grad()
def published_scores(model: Any, published: Any, vocabulary: Path, image: Image.Image, size: int, captions: list[str]) -> np.ndarray:
    """The published evaluation's score of each pair, one at a time, float32."""
    image_feats = model.visual_encoder(prepared(image, size))
    tokenizer = published.BertTokenizer(str(vocabulary))
    scores = []
    for caption in captions:
        text = [published.pre_caption(caption, 30)]
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=30, return_tensors="pt")
        text_feats = model.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, mode="text").last_hidden_state
        scores.append(float(fused_logits(model, text_feats, tokens.attention_mask, image_feats)[0, 1]))
    return np.array(scores, dtype=np.float32)


class WithSep(AlbefScorer):
    """Ends each caption with [SEP], as an ordinary BERT tokenizer does."""

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        return [(*ids[: MAX_TOKENS - 1], self._checkpoint.tokenizer.sep_token_id) for ids in super()._token_ids(captions)]


def compare(
    name: str, build: Callable[..., nn.Module], published: Any, checkout: Path, image_size: int, captions: list[str]
) -> dict[str, Any]:
    """One row: the published code's scores and ours from the very file that holds its weights."""
    model = build(published, checkout, image_size).eval()
    randomise(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_vocabulary(folder / "vocab.txt")
        theirs = published_scores(model, published, folder / "vocab.txt", image, image_size, captions)
        torch.save({"model": model.state_dict(), "epoch": 0}, folder / "model.pth")
        lines = convert(str(folder / "model.pth"), folder / "converted", tokenizer=str(folder))
        ours = {
            sep_token: kind.load(str(folder / "converted"), device="cpu").score(image, captions)
            for sep_token, kind in ((False, AlbefScorer), (True, WithSep))
        }
    return {
        "name": f"{name}, {image_size} px",
        "parameters": lines[0],
        "pairs": len(captions),
        "spread": float(np.ptp(theirs)),
        "difference": float(np.abs(theirs - ours[False]).max()),
        "with_sep": float(np.abs(theirs - ours[True]).max()),
    }


def seconds(published: Any, checkout: Path, num_images: int = 3) -> dict[str, float]:
    """Seconds of the published evaluation and of ours: 16 captions against every image at 384 px, base size; and of the vision tower alone.

    Theirs: text features of all captions at once, each image's features repeated for its captions, 30 tokens (Retrieval.py). The tower
    runs once per image on both sides.
    """
    model: Any = base(published, checkout, 384).eval()
    randomise(model)
    captions = [
        f"the {color} {shape} above a {animal}" for color in ("red", "blue") for shape in ("circle", "square") for animal in ANIMALS
    ]
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (384, 384, 3), dtype=np.uint8)) for seed in range(num_images)]
    took = {}
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        write_vocabulary(folder / "vocab.txt")
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        convert(str(folder / "model.pth"), folder / "converted", tokenizer=str(folder))
        scorer = AlbefScorer.load(str(folder / "converted"), device="cpu")
        tokenizer = published.BertTokenizer(str(folder / "vocab.txt"))
        started = time.perf_counter()
        text = [published.pre_caption(caption, 30) for caption in captions]
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=30, return_tensors="pt")
        text_feats = model.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, mode="text").last_hidden_state
        theirs = []
        for image in images:
            image_feats = model.visual_encoder(prepared(image, 384)).repeat(len(captions), 1, 1)
            theirs.append(fused_logits(model, text_feats, tokens.attention_mask, image_feats)[:, 1].numpy())
        took["published"] = time.perf_counter() - started
        started = time.perf_counter()
        ours = [scorer.score(image, captions) for image in images]
        took["ours"] = time.perf_counter() - started
        started = time.perf_counter()
        for image in images:
            scorer._model.visual_encoder(prepared(image, 384))
        took["vision"] = time.perf_counter() - started
    assert np.abs(np.stack(theirs) - np.stack(ours)).max() < 1e-5
    return took


def table(rows: list[dict[str, Any]], took: dict[str, float], command: str) -> str:
    """The results as Markdown."""
    text = [
        *title_lines("albef-equality", "Our ALBEF against its published code"),
        "The same random weights, picture and captions through the published evaluation (Retrieval.py: one pair at a time, padded to 30 "
        "tokens) and through ours (its .pth converted, captions trimmed, states shared); float32 on the CPU; "
        f"torch {torch.__version__}, transformers {transformers.__version__}.",
        "",
        f"Command: `{command}`",
        "",
        "| model | cross-encoder | pairs | spread of the published scores | largest difference | with [SEP] at the end |",
        "|---|---|---|---|---|---|",
    ]
    text += [
        f"| {row['name']} | {row['parameters']} | {row['pairs']} | {row['spread']:.3f} | {row['difference']:.1e} | {row['with_sep']:.1e} |"
        for row in rows
    ]
    text += [
        "",
        "The last column is what an ordinary BERT tokenizer would cost: ALBEF's own ends a caption without [SEP], and so does ours.",
        "The captions hold punctuation, hyphens, accents, tabs, line breaks, an empty one, and one of 45 words.",
        "",
        f"Three pictures at 384 px against 16 captions each, base size, {torch.get_num_threads()} thread(s) of a machine shared with "
        f"others: the published evaluation {took['published']:.1f} s, ours {took['ours']:.1f} s. The vision tower, once per picture on "
        f"either side, is {took['vision']:.1f} s of it. Theirs repeats a picture's features for every caption and pads to 30 tokens.",
        "",
    ]
    return "\n".join(text)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.albef_equality", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="folder of a clone of salesforce/ALBEF")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    asked = parser.parse_args()
    checkout = asked.checkout.resolve()
    published = import_albef(checkout)
    rows = [
        compare("small", small, published, checkout, 64, CAPTIONS),
        compare("ALBEF itself (ViT-B/16, BERT base)", base, published, checkout, 256, CAPTIONS),
        compare("ALBEF itself (ViT-B/16, BERT base)", base, published, checkout, 384, CAPTIONS[:2]),
    ]
    took = seconds(published, checkout)
    for row in rows:
        print(row)
    print(took)
    if asked.output:
        asked.output.write_text(
            table(rows, took, f"python -m benchmarks.albef_equality ../ALBEF --output {asked.output}"), encoding="utf-8"
        )


if __name__ == "__main__":
    main()

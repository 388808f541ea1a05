"""A small text cross-encoder of the demo's own: two captions in, one number out, higher where both are said of one scene.

    python -m benchmarks.text_cross_encoder --output runs/text-cross-encoder           # some ten minutes on one core

It stands for the released ones (cross-encoder/ms-marco-MiniLM-L-6-v2 and its like), which a machine without a network cannot read: a BERT
from random weights in their own format (one label, both texts in one sequence), with the words of the demo's cross-encoder. It learns from
captions of the train split: pairs of one scene against pairs of two, random ones at first (near misses alone leave a small model at
constant predictions), then half of them drawn from the captions with the most words in common.
What it is worth at its own task is measured on val: how often a caption of the same scene scores above one of another.
Shape letters: N pairs or captions, L tokens, W words.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from benchmarks.text_models import PairsToScores, logits_of
from demo.vocabulary import blip_processor
from eval.atomic import apply_umask
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.manifest.manifest import read_manifest

DATA, COLUMNS = "demo/data/scenes.parquet", {"group": "scene"}
NUM_NEAR, BATCH_SIZE, RATE, MAX_TOKENS = 8, 64, 1e-3, 64
EASY_SHARE = 1 / 3


@dataclass(frozen=True)
class CaptionPairs:
    """Where pairs of captions are drawn from.

    Attributes:
        texts: the captions of a split.
        group_N: int64, the scene of each.
        near_NK: int64, to each caption those of other scenes with the most words in common, most first.
    """

    texts: list[str]
    group_N: np.ndarray
    near_NK: np.ndarray

    @classmethod
    def of(cls, dataset: RetrievalSet) -> "CaptionPairs":
        """The captions of a split, its groups as scenes."""
        texts, group_N = list(dataset.captions), dataset.group_I[dataset.caption_image_C]
        return cls(texts, group_N, nearest_in_words(texts, group_N, NUM_NEAR))

    def draw(self, number: int, near_share: float, draws: np.random.Generator) -> tuple[list[str], list[str], np.ndarray]:
        """(first texts, second texts, labels_N) of `number` pairs: half of one scene (1), half of two (0).

        Captions are drawn uniformly; one that is alone in its scene is paired with itself.

        Args:
            near_share: of the pairs of two scenes, how many are near misses; the others are random.
        """
        first_N = draws.integers(0, len(self.texts), number)
        is_own_N, is_near_N = draws.random(number) < 0.5, draws.random(number) < near_share
        near_N = self.near_NK[first_N, draws.integers(0, self.near_NK.shape[1], number)]
        other_N = draws.integers(0, len(self.texts), number)
        second_N = np.where(is_near_N, near_N, other_N)
        for place in np.flatnonzero(is_own_N):
            own = np.flatnonzero(self.group_N == self.group_N[first_N[place]])
            own = own[own != first_N[place]] if len(own) > 1 else own
            second_N[place] = draws.choice(own)
        labels_N = (self.group_N[first_N] == self.group_N[second_N]).astype(np.float32)
        return [self.texts[n] for n in first_N], [self.texts[n] for n in second_N], labels_N


def nearest_in_words(texts: list[str], group_N: np.ndarray, number: int) -> np.ndarray:
    """To each text the `number` texts of other groups that share the most words with it (cosine of word counts), ties by index; int64."""
    split = [text.lower().replace(",", " ").split() for text in texts]
    place = {word: n for n, word in enumerate(sorted({word for words in split for word in words}))}
    counts_NW = np.zeros((len(texts), len(place)), dtype=np.float32)
    for n, words in enumerate(split):
        np.add.at(counts_NW[n], [place[word] for word in words], 1.0)
    counts_NW /= np.maximum(np.linalg.norm(counts_NW, axis=1, keepdims=True), 1e-12)
    nearest_NK = np.empty((len(texts), number), dtype=np.int64)
    for start in range(0, len(texts), 512):
        shared = counts_NW[start : start + 512] @ counts_NW.T
        shared[group_N[start : start + 512, None] == group_N[None, :]] = -np.inf
        nearest_NK[start : start + 512] = np.argsort(-shared, axis=1, kind="stable")[:, :number]
    return nearest_NK


def new_cross_encoder(seed: int) -> tuple[BertForSequenceClassification, PreTrainedTokenizerBase]:
    """A BERT of random weights (two layers of width 128) with one label, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = blip_processor().tokenizer
    tokenizer.model_max_length = MAX_TOKENS
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, num_labels=1, **sizes)
    return BertForSequenceClassification(config), tokenizer


def cross_logits(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, first: list[str], second: list[str]) -> torch.Tensor:
    """The one logit of each pair, shape (N,)."""
    words = tokenizer(first, second, padding=True, truncation=True, return_tensors="pt")
    logits_N: torch.Tensor = model(**words).logits[:, 0]
    return logits_N


def train(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: CaptionPairs, num_steps: int, batch_size: int, seed: int
) -> float:
    """Fit with binary cross-entropy, warm-up and a linear fall of the rate; the mean loss of the last hundred steps."""
    draws = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    share = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1 - step / num_steps))
    losses = []
    model.train()
    for step in range(num_steps):
        first, second, labels_N = pairs.draw(batch_size, 0.5 if step > EASY_SHARE * num_steps else 0.0, draws)
        logits_N = cross_logits(model, tokenizer, first, second)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_N, torch.from_numpy(labels_N))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        share.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.3f}", flush=True)
    model.eval()
    return float(np.mean(losses[-100:]))


def share_told_apart(score: PairsToScores, pairs: CaptionPairs, seed: int = 0) -> dict[str, float]:
    """How often another caption of a caption's scene scores above one of another scene: `near`, the nearest in words, or a `random` one.

    Every caption of `pairs` that is not alone in its scene asks once; a tie counts half.
    """
    draws = np.random.default_rng(seed)
    asked = [n for n in range(len(pairs.texts)) if (pairs.group_N == pairs.group_N[n]).sum() > 1]
    own = [int(draws.choice([m for m in np.flatnonzero(pairs.group_N == pairs.group_N[n]) if m != n])) for n in asked]
    strange = [int(draws.choice(np.flatnonzero(pairs.group_N != pairs.group_N[n]))) for n in asked]
    first = [pairs.texts[n] for n in asked]
    found = {
        name: score(first, [pairs.texts[n] for n in others])
        for name, others in {"own": own, "near": pairs.near_NK[asked, 0].tolist(), "random": strange}.items()
    }
    return {name: float(np.mean((found["own"] > found[name]) + 0.5 * (found["own"] == found[name]))) for name in ("near", "random")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    manifest = read_manifest(DATA, columns=COLUMNS)
    learned, held_out = (CaptionPairs.of(load_split(manifest, split)) for split in ("train", "val"))
    model, tokenizer = new_cross_encoder(asked.seed)
    began = time.perf_counter()
    loss = train(model, tokenizer, learned, asked.steps, BATCH_SIZE, asked.seed)
    shares = share_told_apart(logits_of(model, tokenizer), held_out)
    model.save_pretrained(asked.output)
    tokenizer.save_pretrained(asked.output)
    apply_umask(asked.output)
    told = ", ".join(f"{100 * share:.1f}% against a {name} one" for name, share in shares.items())
    print(f"{time.perf_counter() - began:.0f} s, loss {loss:.3f}; on val the caption of the same scene scores higher: {told}")


if __name__ == "__main__":
    main()

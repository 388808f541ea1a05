"""Text-text models: two texts in, one number out, higher where they say the same.

Shape letters: N pairs, T distinct texts, D width of a vector, L tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from eval.errors import UserError

PairsToScores = Callable[[list[str], list[str]], np.ndarray]
"""(first texts, second texts) to one float32 score a pair, shape (N,)."""
BATCH = 128


def cosines_of(embed: Callable[[list[str]], np.ndarray]) -> PairsToScores:
    """Cosine of the two texts' vectors; each distinct text is embedded once.

    Args:
        embed: texts to float32 unit vectors, shape (T, D).
    """

    def score(first: list[str], second: list[str]) -> np.ndarray:
        texts = sorted({*first, *second})
        place = {text: number for number, text in enumerate(texts)}
        vectors_TD = embed(texts)
        sides = (vectors_TD[[place[text] for text in side]] for side in (first, second))
        return np.einsum("nd,nd->n", *sides).astype(np.float32)

    return score


def load_text_model(name: str) -> PairsToScores:
    """A text-text model of the hub's format: a cross-encoder, or else an encoder whose last states are averaged.

    A cross-encoder is a sequence classifier of one label, as CrossEncoder of sentence-transformers loads; its `predict` adds a sigmoid,
    which orders nothing anew.

    Raises:
        UserError: the classifier has more than one label.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not (AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or [""])[0].endswith("ForSequenceClassification"):
        encoder = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False).eval()
        return cosines_of(lambda texts: mean_states(encoder, tokenizer, texts))
    classifier = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, trust_remote_code=False).eval()
    if classifier.config.num_labels != 1:
        raise UserError(f"{name}: expected a cross-encoder of one label; found {classifier.config.num_labels}. Give one that scores pairs")
    return logits_of(classifier, tokenizer)


def logits_of(classifier: torch.nn.Module, tokenizer: Any) -> PairsToScores:
    """The one logit of both texts in one sequence; each distinct pair is scored once, short ones together."""

    def score(first: list[str], second: list[str]) -> np.ndarray:
        pairs = sorted({*zip(first, second, strict=True)}, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
        found: dict[tuple[str, str], float] = {}
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            words = tokenizer([one for one, _ in batch], [two for _, two in batch], padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                found.update(zip(batch, classifier(**words).logits[:, 0].tolist(), strict=True))
        return np.array([found[pair] for pair in zip(first, second, strict=True)], dtype=np.float32)

    return score


def mean_states(encoder: torch.nn.Module, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Unit vectors of texts, float32 (T, D): the mean of the last states over their tokens (Reimers and Gurevych 2019)."""
    parts = []
    for start in range(0, len(texts), BATCH):
        words = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states_TLD = encoder(**words).last_hidden_state
        shown_TL1 = words["attention_mask"][..., None].float()
        mean_TD = (states_TLD * shown_TL1).sum(1) / shown_TL1.sum(1)
        parts.append(torch.nn.functional.normalize(mean_TD, dim=1).numpy())
    return np.concatenate(parts)

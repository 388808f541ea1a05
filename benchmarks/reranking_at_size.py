"""BLIP at base size, both directions of a set with five captions an image: ours next to the calls of two other ways of doing it.

    OMP_NUM_THREADS=2 python -m benchmarks.reranking_at_size --data FLICKR8K --rounds 5 --output results/reranking-at-size.md
    python -m benchmarks.reranking_at_size --data FLICKR8K --device cuda --precision bfloat16 --top-k 128 --output OUTPUT.md

BLIP base at 384 pixels with random weights (their values change no time), real photographs and captions, and first-stage lists from
made-up embeddings. Plain transformers: image to text one forward per image with its K captions, which it broadcasts; text to
image a forward per pair. The published practice (as BLIP's own evaluation does it): vision features of all images cached, repeated per
pair, captions padded to 35 tokens, each direction for itself. Every way is timed on a sample of its calls, in turns, and the whole set is
reckoned from the calls it needs. Scores of the same pairs are compared, and the operations of each call are counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.conclusion import title_lines
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.manifest.manifest import read_manifest
from eval.process_group import use_exact_float32
from rerank.scorers.blip.checkpoint import BlipCheckpoint
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.blip.text import clean_caption
from rerank.scorers.scorer import ScorerSettings
from rerank.scoring.candidates import CandidateLists

MATCH = 1
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PADDED_TOKENS = 35


def base_size_cross_encoder(captions: list[str], folder: Path) -> BlipCheckpoint:
    """BLIP base, 384 pixels, random weights; every word of the captions is one token, as nearly all of them are to BERT's tokenizer."""
    words = dict.fromkeys(word for caption in captions for word in clean_caption(caption).replace(",", " ").split())
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    text = {"num_attention_heads": 12, "encoder_hidden_size": 768, "initializer_range": 0.02, "bos_token_id": 2, "sep_token_id": 3}
    vision = {"image_size": 384, "initializer_range": 0.02}
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).eval()
    processor = BlipImageProcessorPil(size={"height": 384, "width": 384})
    tokenizer = BertTokenizer.from_pretrained(folder, trust_remote_code=False)
    return BlipCheckpoint(model, processor, tokenizer, model.config.text_config.vocab_size - 1)


@dataclass
class TopK:
    """What a first stage of middling quality asks for: the top K of each query, and both directions turned into one list per image."""

    captions_IK: np.ndarray
    images_CK: np.ndarray
    lists: CandidateLists

    @classmethod
    def made_up(cls, dataset: RetrievalSet, top_k: int) -> "TopK":
        """From unit vectors: an image's is random, a caption's is its image's with noise of twice its length."""
        generator = np.random.default_rng(0)
        images_ID = generator.standard_normal((dataset.num_images, 64))
        images_ID /= np.linalg.norm(images_ID, axis=1, keepdims=True)
        captions_CD = images_ID[dataset.caption_image_C] + generator.standard_normal((dataset.num_captions, 64)) / 64**0.5 * 2
        scores_IC = images_ID @ captions_CD.T
        captions_IK = np.argsort(-scores_IC, axis=1)[:, :top_k]
        images_CK = np.argsort(-scores_IC.T, axis=1)[:, :top_k]
        images_N = np.concatenate([np.repeat(np.arange(len(captions_IK)), top_k), images_CK.ravel()])
        captions_N = np.concatenate([captions_IK.ravel(), np.repeat(np.arange(len(images_CK)), top_k)])
        return cls(captions_IK, images_CK, CandidateLists.of_pairs(images_N, captions_N))


@dataclass
class Ways:
    """The calls that are timed; each gives its scores as {(image, caption): score}."""

    dataset: RetrievalSet
    checkpoint: BlipCheckpoint
    scorer: BlipScorer
    heads: TopK
    device: torch.device
    precision: str

    def ours(self, image: int, captions: np.ndarray) -> dict[tuple[int, int], float]:
        """One image with a list of captions, picture read and all."""
        scores = self.scorer.score(self.dataset.load_image(image), [self.dataset.captions[caption] for caption in captions])
        return {(image, int(caption)): float(score) for caption, score in zip(captions, scores, strict=True)}

    def broadcast(self, image: int, captions: np.ndarray) -> dict[tuple[int, int], float]:
        """Plain transformers: one picture, its captions; with one caption, the call for text to image."""
        with self._autocast():
            scores = self.checkpoint.model(pixel_values=self._pixels(image), **self._tokens(captions, "longest")).itm_score[:, MATCH]
        return {(image, int(caption)): float(score) for caption, score in zip(captions, scores.float().cpu(), strict=True)}

    def features(self, image: int) -> torch.Tensor:
        """The published practice's vision features of one image."""
        with self._autocast():
            features: torch.Tensor = self.checkpoint.model.vision_model(pixel_values=self._pixels(image)).last_hidden_state
        return features

    def published(self, images: np.ndarray, captions: np.ndarray, features: torch.Tensor) -> dict[tuple[int, int], float]:
        """The published practice's call for one query: K pairs, the image's features next to each."""
        model = self.checkpoint.model
        with self._autocast():
            tokens = self._tokens(captions, "max_length")
            states = model.text_encoder(**tokens, encoder_hidden_states=features.repeat(len(captions), 1, 1)).last_hidden_state
            scores = model.itm_head(states[:, 0])[:, MATCH].float().cpu()
        return {(int(image), int(caption)): float(score) for image, caption, score in zip(images, captions, scores, strict=True)}

    def _pixels(self, image: int) -> torch.Tensor:
        pixels: torch.Tensor = self.checkpoint.image_processor(images=self.dataset.load_image(image), return_tensors="pt")["pixel_values"]
        return pixels.to(self.device)

    def _tokens(self, captions: np.ndarray, padding: str) -> dict[str, torch.Tensor]:
        texts = [clean_caption(self.dataset.captions[caption]) for caption in captions]
        options: dict[str, Any] = {"truncation": True, "max_length": PADDED_TOKENS, "return_token_type_ids": False}
        tokens = self.checkpoint.tokenizer(texts, padding=padding, return_tensors="pt", **options).to(self.device)
        tokens["input_ids"][:, 0] = self.checkpoint.enc_token_id
        return dict(tokens)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


@dataclass
class Call:
    """One kind of call: how many of them the whole set needs, and what a sample of them took."""

    num_needed: int
    seconds: list[float] = field(default_factory=list)
    gigaflops: list[float] = field(default_factory=list)

    def whole(self, samples: list[float], window: slice = slice(None)) -> float:
        """What all the calls of the set take, from the mean of the sample."""
        return self.num_needed * statistics.fmean(samples[window])


def operations(work: Callable[[], Any]) -> float:
    """GFLOP of the products in one piece of work."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not counted
        work()
    return counter.get_total_flops() / 1e9


def peak_gigaflops(device: torch.device, dtype: torch.dtype) -> float:
    """The most this machine was seen to do in one large product of matrices, GFLOP/s."""
    left = torch.randn(4096, 4096, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        (left @ left)[0, 0].item()
        best = max(best, 2 * 4096**3 / 1e9 / (time.perf_counter() - began))
    return best


class Study:
    """Rounds of calls in turn."""

    def __init__(self, ways: Ways, top_k: int) -> None:
        """top_k: candidates of each query."""
        self.ways, self.largest_difference, self.peak = ways, 0.0, 0.0
        num_images, num_captions = ways.dataset.num_images, ways.dataset.num_captions
        self.calls = {
            "ours, both directions": Call(num_images),
            "ours, image to text": Call(num_images),
            "plain, image to text": Call(num_images),
            "plain, a pair": Call(num_captions * top_k),
            "published, features": Call(num_images),
            "published, a query": Call(num_images + num_captions),
        }
        self.samples: Iterator[int] = iter(np.random.default_rng(1).permutation(num_images).tolist())

    def round(self, *, count: bool) -> None:
        """One sample of each call; with `count`, its operations too, outside the clock."""
        ways, image = self.ways, next(self.samples)
        lists = ways.heads.lists
        listed, head = lists.captions_of(int(np.searchsorted(lists.image_indices_I, image))), ways.heads.captions_IK[image]
        reference = self._timed("ours, both directions", lambda: ways.ours(image, listed), count)
        self._compare(reference, self._timed("ours, image to text", lambda: ways.ours(image, head), count))
        self._compare(reference, self._timed("plain, image to text", lambda: ways.broadcast(image, head), count))
        for caption in listed[:3]:
            alone = np.array([caption])
            self._compare(reference, self._timed("plain, a pair", partial(ways.broadcast, image, alone), count))
        features = self._timed("published, features", lambda: ways.features(image), count)
        # Of a caption's query the image differs from pair to pair; the work is the same, so one image's features stand for all.
        pairs = self._timed("published, a query", lambda: ways.published(np.full(len(head), image), head, features), count)
        self._compare(reference, pairs)
        self.peak = max(self.peak, peak_gigaflops(ways.device, torch.bfloat16 if ways.precision == "bfloat16" else torch.float32))

    def _timed(self, name: str, work: Callable[[], Any], count: bool) -> Any:
        if self.ways.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = work()
        if self.ways.device.type == "cuda":
            torch.cuda.synchronize()
        self.calls[name].seconds.append(time.perf_counter() - began)
        if count:
            self.calls[name].gigaflops.append(operations(work))
        return result

    def _compare(self, ours: dict[tuple[int, int], float], theirs: dict[tuple[int, int], float]) -> None:
        self.largest_difference = max(self.largest_difference, *(abs(ours[pair] - score) for pair, score in theirs.items()))


SYSTEMS = {
    "ours": ("ours, both directions",),
    "plain transformers calls": ("plain, image to text", "plain, a pair"),
    "published practice": ("published, features", "published, a query"),
    "image to text alone: ours": ("ours, image to text",),
    "image to text alone: plain transformers call": ("plain, image to text",),
}


def table(study: Study, rounds: int) -> list[str]:
    """Each way: the whole set's seconds and operations, how near to the arithmetic limit, and ours' advantage with its spread."""
    calls = study.calls

    def hours(system: str, number: int | None = None) -> float:
        """Of the whole set; by one round's calls alone where `number` names one."""
        total = 0.0
        for name in SYSTEMS[system]:
            call = calls[name]
            per_round = len(call.seconds) // rounds
            window = slice(None) if number is None else slice(number * per_round, (number + 1) * per_round)
            total += call.whole(call.seconds, window)
        return total / 3600

    lines = [
        "| way | calls timed | hours for the set | TFLOP for the set | times the arithmetic limit | ours is faster by (range of rounds) |",
        "|---|---|---|---|---|---|",
    ]
    for system, names in SYSTEMS.items():
        flops = sum(calls[name].whole(calls[name].gigaflops) for name in names)
        against = "image to text alone: ours" if system.startswith("image to text") else "ours"
        ratios = [hours(system, number) / hours(against, number) for number in range(rounds)]
        faster = "" if system == against else f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        timed = " + ".join(str(len(calls[name].seconds)) for name in names)
        limit = hours(system) * 3600 * study.peak / flops
        lines.append(f"| {system} | {timed} | {hours(system):.2f} | {flops / 1e3:,.0f} | {limit:.2f} | {faster} |")
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="manifest with five captions an image, e.g. Flickr8k")
    parser.add_argument("--split", default="val")
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--output", required=True)
    asked = parser.parse_args()
    use_exact_float32()
    device = torch.device(asked.device)
    dataset = load_split(read_manifest(asked.data, require_splits=[asked.split]), asked.split)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        checkpoint = base_size_cross_encoder(list(dataset.captions), Path(folder))
        heads = TopK.made_up(dataset, asked.top_k)
        scorer = BlipScorer(checkpoint, device=device, settings=ScorerSettings(precision=asked.precision))
        scorer.captions_at_once = asked.chunk_size
        if asked.precision != "float32":  # the others cast for themselves, from weights of their own
            checkpoint = base_size_cross_encoder(list(dataset.captions), Path(folder))
            checkpoint.model.to(device)
        study = Study(Ways(dataset, checkpoint, scorer, heads, device, asked.precision), asked.top_k)
        study.round(count=False)  # warm
        for call in study.calls.values():
            call.seconds.clear()
        for number in range(asked.rounds):
            study.round(count=number == 0)
            print(f"round {number + 1} of {asked.rounds}", flush=True)
    write(asked, study, heads)


def write(asked: argparse.Namespace, study: Study, heads: TopK) -> None:
    """The table as a file, and printed."""
    dataset, lists = study.ways.dataset, heads.lists
    where = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU threads of a shared machine"
    tokens = statistics.fmean(len(clean_caption(caption).split()) + 2 for caption in dataset.captions)
    ours = study.calls["ours, both directions"]
    rate = lists.num_pairs / ours.whole(ours.seconds)
    text = [
        *title_lines("reranking-at-size", "Reranking at size"),
        f"`python -m benchmarks.reranking_at_size --data FLICKR8K --top-k {asked.top_k} --rounds {asked.rounds} --device {asked.device} "
        f"--precision {asked.precision} --chunk-size {asked.chunk_size}` (torch {torch.__version__}, {where})",
        "",
        f"BLIP base at 384 pixels, random weights, {asked.precision}; "
        f"{dataset.num_images:,} photographs, {dataset.num_captions:,} captions ({tokens:.1f} tokens in the mean), "
        f"K = {asked.top_k} in both directions: "
        f"{(dataset.num_images + dataset.num_captions) * asked.top_k:,} candidates, "
        f"{lists.num_pairs:,} different pairs in one list per image. "
        "Each way is timed on the calls named, in turns, and reckoned for the whole set; reading pictures and tokenizing is in every time. "
        f"The arithmetic limit is the fastest product of two 4096 x 4096 matrices in any round: {study.peak:,.0f} GFLOP/s.",
        "",
        *table(study, asked.rounds),
        "",
        f"Ours scores {rate:.1f} pairs/s. Scores of the same pairs differ by at most {study.largest_difference:.1e} between the ways.",
        "",
    ]
    Path(asked.output).write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()

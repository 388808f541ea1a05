"""The rows of `python -m benchmarks`: what each measures, beside whom, and where it is measured."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Peer:
    """Another tool that does the same.

    Attributes:
        package: what is imported of it.
        remedy: how to install it.
    """

    name: str
    package: str
    remedy: str

    @property
    def is_there(self) -> bool:
        """Whether it is installed."""
        return find_spec(self.package) is not None


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: what is measured.
        unit: "s", or what is counted a second, e.g. "pictures/s".
        module: of benchmarks/speed; its `measure(row, system, place)` takes one measurement, its `prepare(row, place)`, where there is one,
            makes what all measurements of the row read.
        is_quick: whether --quick has it.
        most_rounds: of a row that takes long.
        pages: pages of results/ with more about it, each with the command that makes it.
    """

    name: str
    what: str
    unit: str
    module: str
    peers: tuple[Peer, ...] = ()
    is_quick: bool = True
    most_rounds: int = 99
    pages: tuple[str, ...] = ()


_OPEN_CLIP = Peer("open_clip", "open_clip", "pip install --no-deps open_clip_torch")
_FAISS = Peer("faiss", "faiss", "pip install faiss-cpu")
_CLIP_BENCHMARK = Peer("CLIP_benchmark", "clip_benchmark", "pip install --no-deps clip-benchmark")
_SENTENCE_TRANSFORMERS = Peer("sentence-transformers", "sentence_transformers", "pip install --no-deps sentence-transformers")
_TRANSFORMERS = Peer("transformers", "transformers", "pip install transformers")
_RUN_CLIP = Peer("transformers' Trainer, as run_clip", "transformers", "pip install transformers")

ROWS = (
    Row("pictures", "photographs to pixel values, JPEG decoding included, one core", "pictures/s", "pictures", (_TRANSFORMERS,)),
    Row("step-fp32", "a step of SigLIP base, batch 8, float32", "pairs/s", "training", (_OPEN_CLIP, _RUN_CLIP), pages=("base-size",)),
    Row("step-bf16", "a step of SigLIP base, batch 8, bf16", "pairs/s", "training", (_OPEN_CLIP, _RUN_CLIP), is_quick=False),
    Row("checkpoint", "what a checkpoint of SigLIP base adds to the steps", "s", "training", is_quick=False),
    Row("first-step", "the demo from its command to its first update", "s", "training"),
    Row("loss-4096", "loss and gradients, 4,096 pairs", "s", "retrieval", (_OPEN_CLIP,), pages=("loss-at-size",)),
    Row("loss-16384", "loss and gradients, 16,384 pairs", "s", "retrieval", (_OPEN_CLIP,), False, 2, ("loss-at-size",)),
    Row("search", "the 64 best of 40,000 captions for 4,000 images", "s", "retrieval", (_FAISS,), pages=("mining-at-size",)),
    Row("mining", "3 negatives of 20,000 captions for 4,000 images, vectors given", "s", "retrieval", (_SENTENCE_TRANSFORMERS,)),
    Row("evaluation", "recalls of 5,000 images x 25,010 captions", "s", "retrieval", (_CLIP_BENCHMARK,), False, 2, ("at-size",)),
    Row("reranking", "BLIP base, K = 32 in both directions", "pairs/s", "reranking", (_TRANSFORMERS,), pages=("reranking-at-size",)),
    Row("refresh", "`python -m train.mining` on the demo", "s", "commands"),
    Row("eval", "`python -m eval` on the demo's test split", "s", "commands"),
    Row("eval-again", "the same command a second time", "s", "commands", is_quick=False, most_rounds=2),
    Row("manifest-100k", "a manifest of 100,000 rows read, split, checked", "s", "manifests", pages=("manifest-at-size",)),
    Row("manifest-1m", "a manifest of 1,000,000 rows read, split, checked", "s", "manifests", (), False, 2, ("manifest-at-size",)),
)

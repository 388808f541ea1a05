"""What a run costs at a number of pairs and GPUs, by arithmetic: operations, bytes, network; and by what benchmarks/scale measured.

Every figure that is no measurement of this repository is in `Machine` and `Model`, and is an assumption. One epoch, one caption an image.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.refresh_cost import CACHED_FACTOR, PEAK_TFLOPS, PICTURES_A_CORE, SHARE_OF_PEAK

NUM_PAIRS, NUM_GPUS = (1_000_000, 100_000_000), (8, 256)
MOST_BATCH, BATCH_A_GPU = 32_768, 512
DEPTH = 64  # pool_top_k
TILE_QUERIES = 32_768  # of a process, for which the captions are read once (eval/search/streamed.py)
EVALUATED = 5_000  # images of the split that is measured
CANDIDATE_BYTES = 8 + 4 + 1  # index, cosine, outcome (train/mining/candidates.py and mine.py)
TABLE_BYTES = 27  # a candidate, at most, while rules and table are made (results/scale.md, of 32 candidates an image)
RULES_BYTES = 60  # a candidate of a share, where the rules are applied to it at once (docs/mining-at-scale.md)


@dataclass(frozen=True)
class Machine:
    """Assumed of each GPU (H100 or H200, SXM) and of its share of a node.

    Attributes:
        peak, peak_float32: operations a second, dense bfloat16 and float32 (NVIDIA's data sheet of the H200: 989 and 67 teraflops).
        mfu: share of the peak that a step, or embedding, reaches (benchmarks/refresh_cost.py).
        search_share: share of the float32 peak that the exact search reaches.
        cores: of the host.
        pictures: decoded a second and core, without a picture cache (results/pictures.md, 640 x 480).
        cache_gain: times as fast from a picture cache; careful, for a disk.
        picture_bytes: of a file.
        network: bytes a second between nodes, for each GPU (400 Gb/s).
        host_network: bytes a second over gloo, for each process.
        disk: bytes a second that the main process writes.
    """

    peak: float = PEAK_TFLOPS["bf16"] * 1e12
    peak_float32: float = PEAK_TFLOPS["fp32"] * 1e12
    mfu: float = SHARE_OF_PEAK["bf16"]
    search_share: float = SHARE_OF_PEAK["fp32"]
    cores: int = 16
    pictures: float = PICTURES_A_CORE
    cache_gain: float = CACHED_FACTOR
    picture_bytes: float = 100e3
    network: float = 50e9
    host_network: float = 1e9
    disk: float = 1e9


@dataclass(frozen=True)
class Model:
    """SigLIP base, patch 16, 224 pixels, from its config.json."""

    width: int = 768
    layers: int = 12
    patches: int = 196
    tokens: int = 64
    patch_values: int = 768
    parameters: int = 203_155_970

    def tower(self, length: int) -> float:
        """Operations of one forward pass of a tower: products of 24 D^2 a token and layer, and attention of 4 N D."""
        return length * self.layers * (24 * self.width**2 + 4 * length * self.width)

    @property
    def forward(self) -> float:
        """Operations of a pair forward: both towers, the patches' embedding, and the attention pooling's keys and values."""
        return self.tower(self.patches) + self.tower(self.tokens) + self.patches * 2 * self.width * (self.patch_values + 2 * self.width)

    @property
    def step(self) -> float:
        """Operations of a pair in a step: a backward pass takes twice the forward pass's."""
        return 3 * self.forward


MACHINE, MODEL = Machine(), Model()


@dataclass(frozen=True)
class Measured:
    """A term's line of results/scale.md: seconds and bytes of an item at 8x, and the exponent."""

    seconds: float
    held: float
    peak: float
    exponent: str


def read_measured(page: str) -> dict[str, Measured]:
    """The measured terms of results/scale.md, by name.

    >>> read_measured("| order | images | 1 | 2 | 4 | 8,000 | 0.1 | 0.2 | 0.4 | 0.8 | 1.00 (0.98 to 1.02) | 8 | 9 |")["order"].seconds
    0.0001
    """
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 13 and re.fullmatch(r"[\d,]+", cells[5]):
            size = int(cells[5].replace(",", ""))
            found[cells[0]] = Measured(float(cells[9]) / size, float(cells[11]), float(cells[12]), cells[10])
    return found


@dataclass(frozen=True)
class Run:
    """A run of one epoch."""

    pairs: int
    gpus: int
    measured: dict[str, Measured]

    @property
    def batch(self) -> int:
        """Pairs of a step."""
        return min(MOST_BATCH, BATCH_A_GPU * self.gpus)

    @property
    def steps(self) -> float:
        """Steps of the epoch."""
        return self.pairs / self.batch

    @property
    def step_seconds(self) -> float:
        """All steps, the arithmetic alone."""
        return self.pairs * MODEL.step / (self.gpus * MACHINE.peak * MACHINE.mfu)

    @property
    def decode_seconds(self) -> float:
        """All pictures once, without a cache."""
        return self.pairs / (self.gpus * MACHINE.cores * MACHINE.pictures)

    @property
    def gradient_bytes(self) -> float:
        """What a GPU sends for the sums of gradients, float32, by a ring."""
        return self.steps * 2 * (self.gpus - 1) / self.gpus * 4 * MODEL.parameters

    @property
    def text_bytes(self) -> float:
        """What a GPU receives of the others' texts, and sends back of their gradients."""
        return self.steps * 2 * (self.gpus - 1) / self.gpus * self.batch * MODEL.width * 4

    @property
    def refresh_seconds(self) -> float:
        """Both towers forward over all pairs."""
        return self.pairs * MODEL.forward / (self.gpus * MACHINE.peak * MACHINE.mfu)

    @property
    def search_seconds(self) -> float:
        """The exact search of all captions for all images."""
        return 2 * self.pairs**2 * MODEL.width / (self.gpus * MACHINE.peak_float32 * MACHINE.search_share)

    @property
    def search_bytes(self) -> float:
        """What a process receives of the captions over gloo: all of them, once for each band of images."""
        bands = -(-self.pairs // (TILE_QUERIES * self.gpus))
        return bands * self.pairs * MODEL.width * 4

    @property
    def candidate_bytes(self) -> float:
        """The result of a mining on every process: of each candidate its index, its score and what became of it."""
        return self.pairs * DEPTH * CANDIDATE_BYTES

    def of(self, term: str) -> Measured:
        """A measured term."""
        return self.measured[term]


def most_captions_of_exact_search() -> float:
    """Captions above which the exact search of a refresh takes longer than the epoch's steps, whatever the number of images or GPUs."""
    return MODEL.step / (MACHINE.peak * MACHINE.mfu) * MACHINE.peak_float32 * MACHINE.search_share / (2 * MODEL.width)


def mined_bytes(world_size: int, whole_share: bool) -> float:
    """Bytes an image that a process holds of a mining at most; whole_share: with max_uses or a cross-encoder, where the rules are applied
    to the whole share of a process at once instead of to 8,192 images.

    >>> mined_bytes(8, False), mined_bytes(8, True), mined_bytes(1, True)
    (2560.0, 3040.0, 6400.0)
    """
    return float(DEPTH * (CANDIDATE_BYTES + TABLE_BYTES + (RULES_BYTES / world_size if whole_share else 0)))


def cores_to_feed() -> float:
    """Cores that decode as fast as a GPU steps, without a cache."""
    return MACHINE.peak * MACHINE.mfu / MODEL.step / MACHINE.pictures


_MANIFEST = "manifest, .parquet"
ROWS: list[tuple[str, str, Callable[[Run], str]]] = [
    ("reading the manifest, each process all of it", _MANIFEST, lambda run: time_of(run.pairs * run.of(_MANIFEST).seconds)),
    ("held of it by a process beside mapped files", "", lambda run: bytes_of(run.pairs * run.of(_MANIFEST).held)),
    ("pictures on disk", "", lambda run: bytes_of(run.pairs * MACHINE.picture_bytes)),
    ("decoding, no cache", "", lambda run: time_of(run.decode_seconds)),
    ("decoding, picture cache", "", lambda run: time_of(run.decode_seconds / MACHINE.cache_gain)),
    ("order of an epoch", "order of an epoch", lambda run: bytes_of(4 * run.pairs)),
    ("steps: operations", "", lambda run: f"{run.pairs * MODEL.step:.1e}"),
    ("steps: time", "", lambda run: time_of(run.step_seconds)),
    ("gradient sums, sent by a GPU", "", lambda run: bytes_of(run.gradient_bytes)),
    ("gradient sums: time", "", lambda run: time_of(run.gradient_bytes / MACHINE.network)),
    ("texts exchanged by a GPU", "", lambda run: bytes_of(run.text_bytes)),
    ("refresh: embedding", "", lambda run: time_of(run.refresh_seconds)),
    ("refresh: embeddings on disk", "embedding files", lambda run: bytes_of(2 * run.pairs * MODEL.width * 4)),
    ("refresh: exact search", "exact search", lambda run: time_of(run.search_seconds)),
    ("exact search, received by a process", "", lambda run: bytes_of(run.search_bytes)),
    ("candidates held by a process", "rules and table", lambda run: bytes_of(run.candidate_bytes)),
    ("rules and table, one process", "rules and table", lambda run: time_of(run.pairs * run.of("rules and table").seconds)),
    (f"evaluation of {EVALUATED:,} images", "evaluation", lambda run: time_of(EVALUATED * run.of("evaluation").seconds)),
    ("a checkpoint", "checkpoint", lambda run: f"{bytes_of(12 * MODEL.parameters)}, {time_of(12 * MODEL.parameters / MACHINE.disk)}"),
]
"""(term, the measured term whose exponent it has, what it shows of a run)"""


def table(measured: dict[str, Measured]) -> list[str]:
    """The lines of docs/scale.md's table."""
    runs = [Run(pairs, gpus, measured) for pairs in NUM_PAIRS for gpus in NUM_GPUS]
    heads = [f"{run.pairs // 10**6} M, {run.gpus} GPUs" for run in runs]
    lines = [f"| an epoch | {' | '.join(heads)} | exponent measured |", "|---" * (len(runs) + 2) + "|"]
    for name, term, show in ROWS:
        lines.append(f"| {name} | {' | '.join(show(run) for run in runs)} | {measured[term].exponent if term else ''} |")
    return lines


def time_of(seconds: float) -> str:
    """Two digits, in the unit that suits.

    >>> [time_of(seconds) for seconds in (0.25, 59, 4_000, 200_000)]
    ['0.25 s', '59 s', '1.1 h', '2.3 days']
    """
    for size, unit, limit in ((1.0, "s", 100), (60.0, "min", 100), (3600.0, "h", 48)):
        if seconds / size < limit and (unit != "min" or seconds / size < 60):
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.2g} days" if seconds < 8.64e6 else f"{seconds / 86400:,.0f} days"


def bytes_of(number: float) -> str:
    """Two digits, in the unit that suits.

    >>> [bytes_of(number) for number in (16, 812e6, 3.07e12)]
    ['16 B', '810 MB', '3.1 TB']
    """
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{float(f'{number / size:.2g}'):g} {unit}"
    return f"{number:.2g} B"

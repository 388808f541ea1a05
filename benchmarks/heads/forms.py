"""Heads on frozen features, trained by the sigmoid loss and one form of mined negatives each, in plain autograd.

The in-batch term is train/loss/reference.py's. What each form adds to it, with z the logit and w the weight:
    columns      w / B sum softplus(z_ik) over the captions k mined for image i, as `mining.form: columns`
    own_bias     the same with another bias, which is not used afterwards
    ranking      w / B sum softplus(z_ik - z_ii), scale and bias left alone, as `mining.ranking`
    images       w / B sum softplus(z_kj) over the images k mined for caption j
    both         columns and images
Hardness weights multiply the in-batch negatives of a row and of a column: n exp(beta z) / sum exp(beta z), at most CAP, without gradient, 0
where a negative outscores the own pair by more than 1 logit (it is taken for a true one).

Shape letters: B images of a step, N captions of them, K mined ones of each, D width, I images, C captions.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize, softplus

from benchmarks.heads.features import Split
from train.loss.reference import pairwise_sigmoid_loss

WIDTH, HIDDEN, DROPOUT = 128, 256, 0.4
WARMUP, WEIGHT_DECAY, SCALE_RATE = 30, 0.1, 1e-2
POOL = 64
CAP = 10.0
CLUSTER = 8
LATE_STEPS, LATE_RATE = 0.2, 0.3


@dataclass(frozen=True)
class System:
    """How heads are trained.

    Attributes:
        steps, batch: times the bed's.
        captions: of each image in a batch, all of them positives.
        form: of what is mined; None: nothing is.
        count, weight: mined captions (images) of each image (caption), and their weight.
        margin, rank_min: rules of mining, as of a configuration; true ones never are mined.
        random: any that are not true, in place of the best scored.
        hardness: beta; None: equal weights.
        neighbours: share of a batch that is made of an image and those whose captions were mined for it.
        start: share of the steps before mining; it is mined anew after every fifth of them from there.
        late: after plain steps, so many more (LATE_STEPS) at LATE_RATE times the rate, mined or not, and then the mean of both weights.
        ema: decay of a moving average of the weights, which is what is measured.
    """

    steps: float = 1.0
    batch: float = 1.0
    captions: int = 1
    form: str | None = None
    count: int = 4
    weight: float = 0.3
    margin: float | None = -3.0
    rank_min: int = 1
    random: bool = False
    hardness: float | None = None
    neighbours: float = 0.0
    start: float = 0.2
    late: bool = False
    ema: float | None = None

    @property
    def is_mined(self) -> bool:
        """Whether anything is searched for."""
        return self.form is not None or self.neighbours > 0


class Heads(nn.Module):
    """Two heads, each a linear map and a hidden layer beside it; scale and bias."""

    def __init__(self, train: Split) -> None:
        super().__init__()
        for name, features in (("image", train.images_IF), ("text", train.texts_CT)):
            mean, spread = features.mean(0), features.std(0) + 1e-6
            self.register_buffer(f"{name}_mean", torch.from_numpy(mean))
            self.register_buffer(f"{name}_spread", torch.from_numpy(spread))
            size = features.shape[1]
            hidden = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(size, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH))
            self.add_module(f"{name}_hidden", hidden)
            self.add_module(f"{name}_linear", nn.Linear(size, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self.mined_bias = nn.Parameter(torch.tensor(-10.0))

    def embed(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Unit vectors of features of `image` or `text`."""
        rows = (features - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_spread")
        return normalize(getattr(self, f"{name}_hidden")(rows) + getattr(self, f"{name}_linear")(rows), dim=-1)

    @torch.no_grad()
    def vectors(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors of all images and captions, without dropout."""
        was = self.training
        self.eval()
        found = self.embed("image", torch.from_numpy(split.images_IF)), self.embed("text", torch.from_numpy(split.texts_CT))
        self.train(was)
        return found


@dataclass(frozen=True)
class Table:
    """What was mined: of each row, at most K of the other side, -1 behind the last."""

    found_RK: np.ndarray

    @property
    def mean(self) -> float:
        """Mined of each row."""
        return float((self.found_RK >= 0).sum() / len(self.found_RK))


def mine(heads: Heads, train: Split, system: System, draws: np.random.Generator, *, of_images: bool, count: int) -> Table:
    """Captions of each image that are not true of it and best scored by the rules, or images of each caption."""
    images_ID, texts_CD = heads.vectors(train)
    with torch.no_grad():
        queries, gallery = (images_ID, texts_CD) if of_images else (texts_CD, images_ID)
        scale = heads.log_scale.exp()
        own_C = (images_ID[train.image_C] * texts_CD).sum(1) * scale
        parts = []
        for start in range(0, len(queries), 1024):
            rows = np.arange(start, min(start + 1024, len(queries)))
            if system.random:
                place_RK = torch.from_numpy(draws.integers(0, len(gallery), (len(rows), POOL)))
                score_RK = torch.zeros(place_RK.shape)
            else:
                score_RK, place_RK = (queries[rows] * scale @ gallery.T).topk(POOL, dim=1)
            place = place_RK.numpy()
            true = (
                train.is_true(rows, place)
                if of_images
                else train.is_true(place.reshape(-1), np.repeat(rows, POOL)[:, None]).reshape(place.shape)
            )
            ok = ~true
            ok[:, : system.rank_min - 1] = False
            if system.margin is not None and not system.random:
                best = best_own(own_C, train, rows) if of_images else own_C[rows]
                ok &= (score_RK <= best[:, None] - system.margin).numpy()
            if of_images:
                ok &= first_of_text(train.text_C[place])
            order = np.argsort(~ok, axis=1, kind="stable")[:, :count]
            parts.append(np.where(np.take_along_axis(ok, order, 1), np.take_along_axis(place, order, 1), -1))
    return Table(np.concatenate(parts))


def best_own(own_C: torch.Tensor, train: Split, rows: np.ndarray) -> torch.Tensor:
    """The best own caption's score of each image."""
    return torch.stack([own_C[train.offsets[row] : train.offsets[row + 1]].max() for row in rows])


def first_of_text(text_RK: np.ndarray) -> np.ndarray:
    """False where a row has the same text earlier."""
    order = np.argsort(text_RK, axis=1, kind="stable")
    ordered = np.take_along_axis(text_RK, order, 1)
    is_new = np.ones(ordered.shape, dtype=bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(is_new)
    np.put_along_axis(first, order, is_new, 1)
    return first


def hardness_weights(logits_BN: torch.Tensor, labels_BN: torch.Tensor, own_BN: torch.Tensor, beta: float) -> torch.Tensor:
    """Weights of the pairs: 1 for positives; see the module."""
    with torch.no_grad():
        negative = labels_BN < 0
        allowed = negative & (logits_BN <= own_BN + 1)
        parts = []
        for dim in (0, 1):
            power = torch.where(allowed, beta * logits_BN, -torch.inf)
            share = torch.nan_to_num(power.softmax(dim))
            parts.append((share * allowed.sum(dim, keepdim=True)).clamp(max=CAP))
        return torch.where(negative, (parts[0] + parts[1]) / 2, 1.0)


@dataclass(frozen=True)
class Step:
    """One step's rows: images, their captions (`captions` of each, one after the other), and what was mined for them."""

    images_B: np.ndarray
    captions_N: np.ndarray
    mined_BK: np.ndarray | None
    mined_images_NK: np.ndarray | None


def loss_of(heads: Heads, train: Split, step: Step, system: System) -> torch.Tensor:
    """The loss of a step, a scalar."""
    images, texts = torch.from_numpy(train.images_IF), torch.from_numpy(train.texts_CT)
    images_BD, texts_ND = heads.embed("image", images[step.images_B]), heads.embed("text", texts[step.captions_N])
    scale, B = heads.log_scale.exp(), len(step.images_B)
    logits_BN = scale * (images_BD @ texts_ND.T) + heads.bias
    labels_BN = torch.from_numpy(np.where(train.is_true(step.images_B, step.captions_N[None]), 1, -1))
    own_N = logits_BN[np.repeat(np.arange(B), system.captions), np.arange(len(step.captions_N))]
    if system.hardness is None:
        total = pairwise_sigmoid_loss(logits_BN, labels_BN)
    else:
        own_B = own_N.detach().reshape(B, system.captions).amax(1)
        weights_BN = hardness_weights(logits_BN, labels_BN, torch.minimum(own_B[:, None], own_N.detach()[None]), system.hardness)
        total = (weights_BN * softplus(-labels_BN * logits_BN)).sum() / B
    if step.mined_BK is not None:
        kept = torch.from_numpy(step.mined_BK >= 0)
        mined_BKD = heads.embed("text", texts[np.maximum(step.mined_BK, 0)])
        cos_BK = torch.einsum("bd,bkd->bk", images_BD, mined_BKD)
        if system.form == "ranking":
            own_B = (images_BD[np.repeat(np.arange(B), system.captions)] * texts_ND).sum(1).reshape(B, -1)[:, 0]
            each_BK = softplus(scale.detach() * (cos_BK - own_B[:, None]))
        else:
            each_BK = softplus(scale * cos_BK + (heads.mined_bias if system.form == "own_bias" else heads.bias))
        total = total + system.weight / B * (each_BK * kept).sum()
    if step.mined_images_NK is not None:
        kept = torch.from_numpy(step.mined_images_NK >= 0)
        mined_NKD = heads.embed("image", images[np.maximum(step.mined_images_NK, 0)])
        each_NK = softplus(scale * torch.einsum("nd,nkd->nk", texts_ND, mined_NKD) + heads.bias)
        total = total + system.weight / B * (each_NK * kept).sum()
    return total


class Draws:
    """The images and captions of every step: in batches of one size those of plain training, whatever is mined for them."""

    def __init__(self, train: Split, batch_size: int, seed: int) -> None:
        self._train, self._size, self._seed, self._order = train, min(batch_size, len(train.images_IF)), seed, np.empty(0, dtype=np.int64)
        self._generator = np.random.default_rng([seed, 1])

    def images(self, neighbours: Table | None, share: float) -> np.ndarray:
        """The next images of a shuffled pass; some in clusters of neighbours, with `neighbours`."""
        while len(self._order) < self._size:
            self._order = np.concatenate([self._order, self._generator.permutation(len(self._train.images_IF))])
        rows, self._order = self._order[: self._size], self._order[self._size :]
        if neighbours is not None:
            planned = rows
            anchors = rows[: max(1, int(share * self._size / CLUSTER))]
            found = neighbours.found_RK[anchors]
            near = np.where(found >= 0, self._train.image_C[np.maximum(found, 0)], -1)[:, : CLUSTER - 1]
            chosen = np.concatenate([anchors[:, None], near], axis=1).reshape(-1)
            rows = np.concatenate([chosen[chosen >= 0], rows[len(anchors) :]])
            _, first = np.unique(rows, return_index=True)  # an image comes once
            kept = rows[np.sort(first)][: self._size]
            self._order = np.concatenate([planned[~np.isin(planned, kept)], self._order])
            rows = kept
        return rows

    def captions(self, images_B: np.ndarray, count: int) -> np.ndarray:
        """So many different captions of each image, one after the other (again from the first where it has fewer)."""
        first_B, counts_B = self._train.offsets[images_B], np.diff(self._train.offsets)[images_B]
        keys = self._generator.random((len(images_B), counts_B.max()))
        keys[np.arange(keys.shape[1]) >= counts_B[:, None]] = 2.0  # places that an image does not have come last
        drawn = np.argsort(keys, axis=1)
        place = np.take_along_axis(drawn, np.arange(count) % counts_B[:, None], 1)
        return (first_B[:, None] + place).reshape(-1)


@dataclass
class Trained:
    """Heads after training, and what it took: rows of images and texts through the heads with gradients, and without."""

    heads: Heads
    mined: float
    trained_images: int = 0
    trained_texts: int = 0
    searched: int = 0


def train_heads(train: Split, system: System, *, seed: int, steps: int, batch_size: int, rate: float) -> Trained:
    """Train from the seed's own first weights and order of images."""
    torch.manual_seed(seed)
    heads = Heads(train)
    trained = Trained(heads, 0.0)
    run = Draws(train, round(batch_size * system.batch), seed)
    if not system.late:
        _descend(trained, train, system, run, seed=seed, steps=round(steps * system.steps), rate=rate)
        return trained
    plain = System()
    _descend(trained, train, plain, run, seed=seed, steps=round(steps * system.steps), rate=rate)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    _descend(trained, train, system, run, seed=seed, steps=round(steps * system.steps * LATE_STEPS), rate=rate * LATE_RATE)
    heads.load_state_dict({name: (value + before[name]) / 2 for name, value in heads.state_dict().items()})
    return trained


def _descend(trained: Trained, train: Split, system: System, run: Draws, *, seed: int, steps: int, rate: float) -> None:
    """AdamW with a warm-up and a cosine to 0; mines when it is due."""
    heads = trained.heads
    rules = np.random.default_rng([seed, 2])
    groups = [
        {"params": [each for each in heads.parameters() if each.ndim > 0]},
        {"params": [each for each in heads.parameters() if each.ndim == 0], "lr": SCALE_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    first = 0 if system.late else round(system.start * steps)
    every = max(1, math.ceil((steps - first) / 4))
    average = (
        torch.optim.swa_utils.AveragedModel(heads, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(system.ema))
        if system.ema
        else None
    )
    captions = images = near = None
    heads.train()
    for step in range(steps):
        if system.is_mined and step >= first and (step - first) % every == 0:
            if system.neighbours:
                near = mine(heads, train, system, rules, of_images=True, count=CLUSTER - 1)
            if system.form is not None and system.form != "images":
                captions = mine(heads, train, system, rules, of_images=True, count=system.count)
            if system.form in ("images", "both"):
                images = mine(heads, train, system, rules, of_images=False, count=system.count)
            trained.searched += 0 if system.random else len(train.images_IF) * 3 + len(train.texts_CT)
            trained.mined = sum(table.mean for table in (captions, images, near) if table is not None)
        rows = run.images(near, system.neighbours)
        chosen = run.captions(rows, system.captions)
        mined = None if captions is None else captions.found_RK[rows]
        mined_images = None if images is None else images.found_RK[chosen]
        loss = loss_of(heads, train, Step(rows, chosen, mined, mined_images), system)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(heads)
        trained.trained_images += len(rows) + (0 if mined_images is None else int((mined_images >= 0).sum()))
        trained.trained_texts += len(chosen) + (0 if mined is None else int((mined >= 0).sum()))
    if average is not None:
        heads.load_state_dict(average.module.state_dict())

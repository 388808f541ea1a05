"""Mining with an ensemble of the model under training and fixed checkpoints: candidates are ranked by the mean of all logits.

A fixed checkpoint embeds each image and each caption once in a run, with its own tokenizer and image processor; the embeddings are cached
(train/model/frozen_tower.py). The search runs once over concatenated embeddings, each member's times the square root of its share
(rerank/combine/combine.py). The shares change at each refresh, as the logit scale of the model under training does. Shape letters:
N rows embedded, B rows of a block, D the width of the model under training, E the sum of all members' widths.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.encoder.embedding_files import Shards
from eval.encoder.encoder import num_blocks
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from rerank.combine.combine import mean_of_members
from train.config.mining import MiningConfig
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings, FrozenRows
from train.data.caption_pool import CaptionPool
from train.model.frozen_tower import FrozenStore
from train.model.siglip import TunedModel


@dataclass(frozen=True)
class MiningMember:
    """A fixed checkpoint of the ensemble, with its cached embeddings.

    Attributes:
        sha256: of its weights, tokenizer and image processor.
        weight: of its logits in the mean; the model under training has 1.
        scale, bias: of its logits.
        images, captions: its embeddings, of every image of the split and of every caption of the pool.
    """

    sha256: str
    weight: float
    scale: float
    bias: float
    images: FrozenRows
    captions: FrozenRows


@dataclass(frozen=True)
class Retriever:
    """What ranks the candidates: a model, what is known of it already, and the fixed checkpoints that rank with it.

    Attributes:
        frozen: its embeddings that are cached and need not be made again; captions' are those of the whole pool.
        members: fixed checkpoints: all cosines are then those of the ensemble.
    """

    model: SiglipModel
    inputs: SiglipInputs
    frozen: FrozenEmbeddings = NOTHING_FROZEN
    members: Sequence[MiningMember] = ()


def members_sha256(config: MiningConfig | None) -> str | None:
    """Hash of the ensemble's fixed checkpoints, with their weights in the mean; None where there are none.

    Raises:
        UserError: one cannot be read, or two are the same model.
    """
    if config is None or not config.members:
        return None
    hashed = [(_fingerprint(_load(checkpoint)), weight) for checkpoint, weight in config.members]
    first: dict[str, str] = {}
    for (checkpoint, _), (fingerprint, _) in zip(config.members, hashed, strict=True):
        if fingerprint in first:
            raise UserError(
                f"mining.ensemble: {first[fingerprint]} and {checkpoint} are the same model and would count twice; name it once, with a "
                "weight (DIR:2)"
            )
        first[fingerprint] = checkpoint
    return hashlib.sha256(json.dumps(hashed).encode()).hexdigest()


def load_members(
    config: MiningConfig | None,
    folder: Path,
    pool: CaptionPool,
    *,
    bar: Callable[[str, int], AbstractContextManager[Callable[[int], Any]]],
    execution: Execution = ONE_PROCESS,
) -> tuple[MiningMember, ...]:
    """The ensemble's fixed checkpoints; embeddings that are not cached yet are made first. Call on every process.

    Args:
        folder: of their embeddings, runs/NAME/ensemble; one subfolder for each.
        bar: (text, rows) to a progress bar, which is called with the number of rows embedded.

    Raises:
        UserError: one cannot be read, or an embedding is not finite.
        WriteError: the embeddings cannot be written.
    """
    members = []
    for number, (checkpoint, weight) in enumerate(config.members if config is not None else (), 1):
        tuned = execution.processes.together(lambda checkpoint=checkpoint: _load(checkpoint))  # type: ignore[misc]  # mypy: of a default argument
        tuned.siglip.to(execution.device)  # type: ignore[arg-type]  # transformers wraps it
        store = FrozenStore(folder / str(number), tuned, pool, execution.processes)
        with bar(f"embedding ({Path(checkpoint).name}, once)", pool.dataset.num_images + len(pool)) as on_progress:
            told = replace(execution, on_progress=on_progress)
            images, captions = store.rows("image", told), store.rows("text", told)
        members.append(MiningMember(_fingerprint(tuned), weight, *_scale_and_bias(tuned.siglip), images, captions))
    return tuple(members)


def _load(checkpoint: str) -> TunedModel:
    try:
        siglip, inputs = load_siglip(checkpoint)
    except UserError as error:
        raise UserError(f"mining.ensemble: {error}") from error
    return TunedModel(siglip, inputs, hash_weights(siglip))


def _fingerprint(tuned: TunedModel) -> str:
    """Hash of weights, image processor and tokenizer, the latter by its vocabulary."""
    inputs = tuned.inputs
    read = [inputs.contract, inputs.image_processor.to_dict(), sorted(inputs.tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps([tuned.base_sha256, read], sort_keys=True, default=str).encode()).hexdigest()


def scale_and_bias(model: SiglipModel, members: Sequence[MiningMember] = ()) -> tuple[np.float32, np.float32]:
    """Scale and bias of the model's logits; with members, of the ensemble's, whose cosine is that of the concatenated embeddings."""
    scale, bias = _scale_and_bias(model)
    if members:
        _, scale, bias = ensemble_weights(model, members)
    return np.float32(scale), np.float32(bias)


def _scale_and_bias(model: SiglipModel) -> tuple[float, float]:
    return float(model.logit_scale.detach().exp()), float(model.logit_bias.detach())


def ensemble_weights(model: SiglipModel, members: Sequence[MiningMember]) -> tuple[list[float], float, float]:
    """(shares of the model and of each member in the cosine, which add up to 1, scale, bias) of the ensemble."""
    scale, bias = _scale_and_bias(model)
    scales, biases = [scale, *(member.scale for member in members)], [bias, *(member.bias for member in members)]
    return mean_of_members(scales, biases, [1.0, *(member.weight for member in members)])


class ConcatenatedShards:
    """Shards of concatenated embeddings, E wide: takes those of the model under training block by block and adds the members'.

    An image that does not decode, for the model or for a member, is a row of zeros.
    """

    def __init__(
        self, shards: Shards, shares: Sequence[float], cached: Sequence[FrozenRows], indices_N: np.ndarray, block: int, processes: Processes
    ) -> None:
        """`shares`: of the model, and of each member; `indices_N`: the row of the members' cached embeddings for each row of the shards."""
        self._shards, self._cached, self._indices_N, self._block = shards, cached, indices_N, block
        self._roots = [np.float32(share**0.5) for share in shares]
        self._numbers = iter(processes.share_of(num_blocks(len(indices_N), block)))

    def append(self, vectors_BD: np.ndarray) -> None:
        """Write the next block of this process's share.

        Raises:
            OSError: as eval.encoder.embedding_files.Shards.append.
        """
        number = next(self._numbers)
        rows_B = self._indices_N[number * self._block : (number + 1) * self._block]
        parts = [vectors_BD, *(cached.vectors_ND[rows_B] for cached in self._cached)]
        joined_BE = np.concatenate([root * part for root, part in zip(self._roots, parts, strict=True)], axis=1)
        joined_BE[~np.all([part.any(axis=1) for part in parts], axis=0)] = 0
        self._shards.append(joined_BE)

    def seal(self) -> None:
        """End the writing, on all processes together.

        Raises:
            OSError: as eval.encoder.embedding_files.Shards.seal.
        """
        self._shards.seal()

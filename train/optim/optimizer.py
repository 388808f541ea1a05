"""`Trainable`, the base of a model under training (SigLIP: train/model/siglip.py, BLIP: train/reranker/model.py), and its optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from eval.encoder.identity import Identity
from train.config.run import LoopConfig
from train.optim.muon import Muon

# Parameters of several dimensions that are not matrices of a layer: SigLIP's pooling probe, BLIP's class token and positions.
_BARE = ("probe", "class_embedding", "vision_model.embeddings.position_embedding")


class Trainable(ABC):
    """A model under training."""

    base_sha256: str
    """Hash of the weights it started from."""
    base_identity: Identity | None
    """The config, image processor and tokenizer it started from; None where nobody asks."""

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The model, with adapters if any."""

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name, parameter) of everything that trains, in a fixed order."""
        return ((name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad)


def build_optimizer(
    tuned: Trainable,
    config: LoopConfig,
    part_of: Callable[[str], str],
    rates: Mapping[str, float | None],
    rate_scale: Callable[[str], float] | None = None,
    *,
    muon: bool = False,
) -> torch.optim.AdamW:
    """AdamW with a group per part, per peak rate and per decay, each with its peak rate under "peak" and its names under "names".

    The rate of each step is set by the step itself (train/optim/update.py). Weight decay falls on the matrices of linear layers and
    convolutions only; not on biases, norms, embeddings, pooling probes and other bare vectors (the Hugging Face Trainer decays some of
    these: docs/numerics.md).

    Args:
        part_of: the part of the model that a parameter belongs to, by its name.
        rates: the peak rate of each part; None: config.learning_rate.
        rate_scale: what the rate of a parameter is multiplied by, by its name; None: by nothing.
        muon: take Muon for the matrices that decay.
    """
    embeddings = {
        f"{prefix}.{name}"
        for prefix, module in tuned.module.named_modules()
        if isinstance(module, torch.nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[str, float, bool, bool], dict[str, Any]] = {}
    for name, parameter in tuned.trainable():
        decays = parameter.ndim >= 2 and name not in embeddings and not name.endswith(_BARE)
        part = part_of(name)
        peak = (rates[part] or config.learning_rate) * (1.0 if rate_scale is None else rate_scale(name))
        by_muon = muon and decays and parameter.ndim == 2
        shared = {"part": part, "peak": peak, "weight_decay": config.weight_decay if decays else 0.0, "muon": by_muon}
        group = groups.setdefault((part, peak, decays, by_muon), {"params": [], "names": []} | shared)
        group["params"].append(parameter)
        group["names"].append(name)
    on_gpu = next(tuned.module.parameters()).device.type == "cuda"
    kind = Muon if muon else torch.optim.AdamW
    return kind(list(groups.values()), lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=on_gpu or None)


def peak_rates(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """The (lowest, highest) peak rate of each part of `build_optimizer`; they differ where layers have rates of their own."""
    peaks: dict[str, list[float]] = {}
    for group in optimizer.param_groups:
        peaks.setdefault(group["part"], []).append(group["peak"])
    return {part: (min(found), max(found)) for part, found in peaks.items()}

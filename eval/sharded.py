"""A model whose weights lie in parts on several processes (train/optim/fsdp.py), as evaluation sees it.

Each process runs its own rows, but at every forward pass of a tower all of them give their parts: as many passes on each, or one waits for
ever.
"""

import torch
from torch.distributed.tensor import DTensor


def is_sharded(model: torch.nn.Module) -> bool:
    """True if a parameter of the model lies in parts on several processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts of all processes; one that is no part comes back as it is. Call on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

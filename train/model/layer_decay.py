"""Layer-wise decay of the learning rate: the lower a layer of a tower, the more general what it knows, and the smaller its steps.

Source: Howard and Ruder 2018, arXiv 1801.06146, section 3.2; layers numbered as BEiT does (Bao et al. 2021, arXiv 2106.08254) and timm's
param_groups_layer_decay: the embeddings are the lowest, final norm and head the highest.
"""

import re
from typing import Any

_LAYER = re.compile(r"^(vision_model|text_model)\.encoder\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^(vision_model|text_model)\.embeddings\.")


def layers_above(name: str, num_layers: int) -> int:
    """How many layers of its tower lie above a parameter: 0 for final norm and head, num_layers + 1 for embeddings.

    >>> [layers_above(f"text_model.{name}", 12) for name in ("embeddings.x", "encoder.layers.0.x", "encoder.layers.11.x", "head.x")]
    [13, 12, 1, 0]

    Args:
        name: of a SigLIP's parameter; an adapter's has that of its layer in it. Of what is in no tower (scale, bias): 0.
        num_layers: of the tower's encoder.
    """
    if found := _LAYER.match(name):
        return num_layers - int(found[2])
    return num_layers + 1 if _EMBEDDINGS.match(name) else 0


def rate_scale(name: str, layer_decay: float, config: Any) -> float:
    """What a parameter's rate is multiplied by: layer_decay ** (layers above it).

    Args:
        config: of the SigLIP model, as transformers reads it.
    """
    tower = config.vision_config if name.startswith("vision_model.") else config.text_config
    return layer_decay ** layers_above(name, tower.num_hidden_layers)

"""Operations of SigLIP, counted on the meta device: no weights, no time."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def tower_flops(config: Any | None = None) -> dict[str, float]:
    """FLOP of one forward pass of one picture and of one caption; of products of matrices, as torch counts them.

    Args:
        config: a SiglipConfig; by default the base model's at 224 pixels.
    """
    from transformers import SiglipConfig, SiglipModel

    config = config or SiglipConfig()
    with torch.device("meta"):
        model = SiglipModel(config)
        pixels = torch.zeros(1, 3, config.vision_config.image_size, config.vision_config.image_size)
        tokens = torch.zeros(1, config.text_config.max_position_embeddings, dtype=torch.int64)
    found = {}
    for name, call in (("image", lambda: model.vision_model(pixel_values=pixels)), ("text", lambda: model.text_model(input_ids=tokens))):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # fused kernels are not counted
            call()
        found[name] = float(counter.get_total_flops())
    return found


def step_flops(batch: int, config: Any | None = None) -> float:
    """FLOP of a step of both towers: forward, and twice that backward, for inputs and weights. The loss is left out: 4,096 pairs at width
    768 add a thousandth."""
    return 3 * batch * sum(tower_flops(config).values())

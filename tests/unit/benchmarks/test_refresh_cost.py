"""benchmarks/refresh_cost.py: the counted FLOP are those that torch counts in transformers' towers."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.refresh_cost import cases, image_flop, text_flop
from eval.encoder.checkpoint import load_siglip
from tests.small_job import SmallWorld


def test_flop_of_both_towers(small_world: SmallWorld) -> None:
    model, inputs = load_siglip(Path(small_world.base))
    model.set_attn_implementation("eager")  # torch counts no fused attention on a CPU
    vision, text = model.config.vision_config, model.config.text_config
    pixels, ids = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size), inputs.token_ids(["a dog"])
    for tower, given, expected in ((model.vision_model, pixels, image_flop(vision)), (model.text_model, ids, text_flop(text))):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower(given)
        assert counter.get_total_flops() == expected


def test_a_refresh_is_the_sum_of_the_slower_sides() -> None:
    before, now, cached = cases().values()
    page = (Path(__file__).parents[3] / "docs" / "mining-at-scale.md").read_text(encoding="utf-8")
    assert f"{before.seconds:.0f} s a refresh in fp32, {now.seconds:.0f} s in bf16" in page
    assert before.seconds > now.seconds > cached.seconds
    for case in (before, now, cached):
        assert max(sum(host for _, _, host, _ in case.stages()), sum(device for *_, device in case.stages())) <= case.seconds
        assert case.seconds <= case.seconds_in_turn

"""What a step of a base-size SigLIP (203 M parameters, random weights) takes, in CPU seconds of one thread: uncompiled against compiled
towers, autocast's casts against bf16 copies of the weights, three projections against one, and the parts of an update.

    python -m benchmarks.step_at_size --batch-size 4 --rounds 3 --output results/step-at-size.md

The ways take turns in one process; CPU seconds (not wall) because other jobs may run. 6.5 GiB of memory; compiling takes minutes.
"""

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.functional import linear
from torch.nn.utils import get_total_norm
from transformers import SiglipConfig, SiglipModel

from benchmarks.conclusion import title_lines
from eval.encoder.inputs import image_features, text_features
from train.optim.ema import WeightAverage

NUM_TOKENS = 64


class Copied(torch.autograd.Function):
    """A bf16 copy in a weight's place, whose gradient goes to the weight in float32: what autocast's cast does, without the cast."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        """The copy."""
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        """The gradient, widened."""
        return gradients[0].float(), None


def is_cast(name: str, parameter: torch.Tensor) -> bool:
    """Whether autocast casts a parameter: of linear layers and convolutions, not of norms and embeddings."""
    return not any(part in name for part in ("norm", "token_embedding", "position_embedding", "probe", "logit_"))


class Measured:
    """Forward and backward passes of both towers over one batch."""

    def __init__(self, siglip: SiglipModel, batch_size: int, precision: str) -> None:
        self.siglip = siglip
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext
        draws = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(batch_size, 3, 224, 224, generator=draws)
        self.token_ids = torch.randint(0, 30_000, (batch_size, NUM_TOKENS), generator=draws)
        names = [name for name, parameter in siglip.named_parameters() if is_cast(name, parameter)]
        self.copies = {name: siglip.get_parameter(name).detach().bfloat16() for name in names}

    def refresh(self) -> None:
        """Fill the copies from the weights."""
        torch._foreach_copy_([*self.copies.values()], [self.siglip.get_parameter(name).detach() for name in self.copies])

    def gradients(self, model: Any) -> dict[str, torch.Tensor]:
        """Of a sum over products of the unit vectors."""
        self.siglip.zero_grad(set_to_none=True)
        with self.autocast():
            images_ND, texts_ND = image_features(model, self.pixels), text_features(model, self.token_ids)
        (images_ND @ texts_ND.T).sin().sum().backward()
        return {name: parameter.grad for name, parameter in self.siglip.named_parameters() if parameter.grad is not None}

    def with_copies(self) -> dict[str, torch.Tensor]:
        """The same with bf16 copies in the weights' places."""

        class Stand:
            vision_model = partial(self._part, "vision_model")
            text_model = partial(self._part, "text_model")

        return self.gradients(Stand)

    def _part(self, part: str, **inputs: torch.Tensor) -> Any:
        weights = {
            name.removeprefix(f"{part}."): Copied.apply(self.siglip.get_parameter(name), copy)
            for name, copy in self.copies.items()
            if name.startswith(part)
        }
        return functional_call(getattr(self.siglip, part), weights, (), inputs)


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, round by round; the first round is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                found[name].append(time.process_time() - began)
    return found


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of a gradient, by the norm of all."""
    return max(float((found[name] - value).norm()) for name, value in expected.items()) / float(get_total_norm([*expected.values()]))


def spread(seconds: list[float]) -> str:
    """Median, and lowest to highest."""
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def row(name: str, seconds: list[float], base: list[float], note: str) -> str:
    """A line of a table; the ratio is of each round's pair."""
    ratios = sorted(one / other for one, other in zip(base, seconds, strict=True))
    ratio = f"{ratios[len(ratios) // 2]:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    return f"| {name} | {spread(seconds)} | {ratio} | {note} |"


def peak_gib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_rows(siglip: SiglipModel, asked: argparse.Namespace) -> list[str]:
    """Forward and backward of both towers."""
    found = []
    for precision in ("fp32", "bf16"):
        measured = Measured(siglip, asked.batch_size, precision)
        expected = {name: value.clone() for name, value in measured.gradients(siglip).items()}
        before = peak_gib()
        ways: dict[str, Callable[[], Any]] = {"uncompiled": partial(measured.gradients, siglip)}
        notes = {"uncompiled": f"peak {before:.1f} GiB so far"}
        if precision == "bf16":
            ways["bf16 copies"] = measured.with_copies
            equal = all(torch.equal(value, expected[name]) for name, value in measured.with_copies().items())
            num = sum(copy.numel() for copy in measured.copies.values())
            notes["bf16 copies"] = f"gradients {'equal bit for bit' if equal else 'NOT equal'}; {num / 1e6:.0f} M weights are cast"
        began = time.process_time(), time.perf_counter()

        class Compiled:
            vision_model = torch.compile(siglip.vision_model, dynamic=False)
            text_model = torch.compile(siglip.text_model, dynamic=False)

        away = distance(measured.gradients(Compiled), expected)
        took = time.process_time() - began[0], time.perf_counter() - began[1]
        ways["compiled"] = partial(measured.gradients, Compiled)
        notes["compiled"] = (
            f"compiled in {took[1]:.0f} s of wall clock, this process {took[0]:.0f}; gradients within {away:.1e}; "
            f"peak {peak_gib():.1f} GiB so far"
        )
        seconds = in_turns(ways, asked.rounds)
        found += [row(f"{precision}, {name}", seconds[name], seconds["uncompiled"], notes[name]) for name in ways]
    return found


def update_rows(siglip: SiglipModel, asked: argparse.Namespace) -> list[str]:
    """The parts of an update, of the whole model, and of the casts."""
    weights = list(siglip.parameters())
    buffer = torch.zeros(sum(weight.numel() for weight in weights))
    for weight, view in zip(weights, buffer.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = view.view_as(weight)
    buffer.normal_(std=1e-4)

    class Whole:
        def trainable(self) -> Any:
            return siglip.named_parameters()

    average = WeightAverage(Whole(), 0.99)  # type: ignore[arg-type]
    optimizers = {foreach: torch.optim.AdamW(weights, lr=1e-9, foreach=foreach) for foreach in (False, True)}
    measured = Measured(siglip, 1, "bf16")
    ways: dict[str, Callable[[], Any]] = {
        "norm of the gradients": lambda: torch.linalg.vector_norm(buffer, dtype=torch.float64),
        "clipping": lambda: buffer.mul_(0.999),
        "AdamW, a weight at a time": optimizers[False].step,
        "AdamW, foreach": optimizers[True].step,
        "norm of the weights": lambda: get_total_norm([weight.detach() for weight in weights]),
        "EMA": average.update,
        "all weights cast to bf16 once": measured.refresh,
    }
    seconds = in_turns(ways, asked.rounds)
    return [f"| {name} | {spread(values)} |" for name, values in seconds.items()]


def projection_rows(asked: argparse.Namespace) -> list[str]:
    """A layer's three projections of the image tower, forward and backward, and one of the three matrices stacked."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(asked.batch_size * 196, 768, dtype=dtype, requires_grad=True)
        weights = [torch.randn(768, 768, dtype=dtype, requires_grad=True) for _ in range(3)]
        stacked = torch.cat([weight.detach() for weight in weights]).requires_grad_()

        def three(x: torch.Tensor = x, weights: list[torch.Tensor] = weights) -> None:
            for _ in range(5):
                sum(linear(x, weight).sum() for weight in weights).backward()  # type: ignore[union-attr]

        def one(x: torch.Tensor = x, stacked: torch.Tensor = stacked) -> None:
            for _ in range(5):
                sum(part.sum() for part in linear(x, stacked).chunk(3, dim=-1)).backward()  # type: ignore[union-attr]

        seconds = in_turns({"three": three, "one": one}, 2 * asked.rounds)
        found += [row(f"{str(dtype)[6:]}, {name}", values, seconds["three"], "") for name, values in seconds.items()]
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    siglip = SiglipModel(SiglipConfig()).train()
    projections, steps, updates = projection_rows(asked), step_rows(siglip, asked), update_rows(siglip, asked)
    head = "|---|---|---|---|"
    text = [
        *title_lines("step-at-size", "A step at base size: compiled towers, casts of weights, projections, the update"),
        f"203 M parameters, random weights, {asked.batch_size} images of 224 px and as many captions; torch {torch.__version__}, CPU, one "
        f"thread. Seconds of the processor's time, median of {asked.rounds} (lowest to highest), the ways in turns in one process.",
        "",
        f"Command: `python -m benchmarks.step_at_size {' '.join(sys.argv[1:])}`",
        "",
        "| forward and backward of both towers | seconds | times as fast as uncompiled | |",
        head,
        *steps,
        "",
        "| five times a layer's projections of query, key, value | seconds | times as fast as three | |",
        head,
        *projections,
        "",
        "| once in a step, all weights | seconds |",
        "|---|---|",
        *updates,
    ]
    asked.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(asked.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

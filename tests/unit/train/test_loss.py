"""train/loss.py against a double loop in plain Python floats."""

import math

import pytest
import torch

from train.loss import combine, gather_rows, own_mined_loss, pair_loss


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def looped(images: torch.Tensor, captions: torch.Tensor, positive: list[list[bool]], scale: float, bias: float) -> float:
    total = 0.0
    for i, image in enumerate(images.tolist()):
        for j, caption in enumerate(captions.tolist()):
            logit = scale * sum(a * b for a, b in zip(image, caption, strict=True)) + bias
            total += minus_log_sigmoid(logit if positive[i][j] else -logit)
    return total


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (117.3, -12.9), (300.0, 40.0)])
def test_pair_loss_is_the_double_loop(scale: float, bias: float) -> None:
    images, captions = unit(5, 7, 0), unit(6, 7, 1)
    positive = torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) < 0.3  # duplicates: several positives in a row
    assert int(positive.sum()) > 5
    loss = pair_loss(images, captions, positive, scalar(scale), scalar(bias))
    assert float(loss.detach()) == pytest.approx(looped(images, captions, positive.tolist(), scale, bias), rel=1e-12)


def test_own_mined_loss_is_the_loop_over_its_rows() -> None:
    images, mined, rows = unit(4, 7, 0), unit(6, 7, 1), torch.tensor([0, 0, 1, 3, 3, 3])
    expected = 0.0
    for caption, row in zip(mined.tolist(), rows.tolist(), strict=True):
        logit = 20.0 * sum(a * b for a, b in zip(images[row].tolist(), caption, strict=True)) - 3.0
        expected += minus_log_sigmoid(-logit)
    loss = own_mined_loss(images, mined, rows, torch.tensor(20.0).double(), torch.tensor(-3.0).double())
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_without_mined_captions_the_mined_loss_is_zero_and_differentiable() -> None:
    images = unit(4, 7, 0).requires_grad_()
    loss = own_mined_loss(images, unit(0, 7, 1), torch.empty(0, dtype=torch.int64), scalar(1.0), scalar(0.0))
    loss.backward()
    assert float(loss.detach()) == 0.0 and images.grad is not None and not images.grad.any()


def test_gradients_of_scale_bias_and_features_are_those_of_finite_differences() -> None:
    positive, rows = torch.eye(4, dtype=torch.bool), torch.tensor([0, 2, 2])
    positive[0, 3] = True

    def loss(images: torch.Tensor, captions: torch.Tensor, mined: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        pairs = pair_loss(images, captions, positive, scale, bias)
        return combine(pairs, own_mined_loss(images, mined, rows, scale, bias), 0.3, 4).total

    arguments = (unit(4, 5, 0).requires_grad_(), unit(4, 5, 1).requires_grad_(), unit(3, 5, 2).requires_grad_(), scalar(7.0), scalar(-4.0))
    assert torch.autograd.gradcheck(loss, arguments)


def test_the_bias_gradient_by_hand() -> None:
    scale, bias = scalar(2.0), scalar(0.5)
    images, captions, positive = unit(3, 4, 0), unit(3, 4, 1), torch.eye(3, dtype=torch.bool)
    pair_loss(images, captions, positive, scale, bias).backward()
    logits = 2.0 * images @ captions.T + 0.5
    assert bias.grad is not None and scale.grad is not None
    assert float(bias.grad) == pytest.approx(float((torch.sigmoid(logits) - positive.double()).sum()), rel=1e-12)
    assert float(scale.grad) == pytest.approx(float(((torch.sigmoid(logits) - positive.double()) * (images @ captions.T)).sum()), rel=1e-12)


def test_combine_divides_both_terms_by_the_whole_batch() -> None:
    terms = combine(torch.tensor(12.0), torch.tensor(8.0), 0.5, 4)
    assert (float(terms.total), float(terms.in_batch), float(terms.mined)) == (4.0, 3.0, 2.0)
    alone = combine(torch.tensor(12.0), None, 0.5, 4)
    assert (float(alone.total), float(alone.mined)) == (3.0, 0.0)


def test_under_autocast_the_product_stays_float32() -> None:
    images, captions = unit(8, 64, 0).float(), unit(8, 64, 1).float()
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    plain = pair_loss(images, captions, torch.eye(8, dtype=torch.bool), scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = pair_loss(images, captions, torch.eye(8, dtype=torch.bool), scale, bias)
        own = own_mined_loss(images, captions, torch.arange(8), scale, bias)
    assert cast.dtype == own.dtype == torch.float32 and torch.equal(cast, plain)


def test_one_process_sends_nothing() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather_rows(rows, [3]) is rows

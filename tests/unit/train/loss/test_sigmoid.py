"""train/loss/sigmoid.py against train/loss/reference.py; the reference itself against a double loop in plain Python floats."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval.dataset.retrieval_set import GroupHashes
from train.loss.distillation import OwnPairs
from train.loss.positives import BatchPositives
from train.loss.reference import loss_with_mined_columns, pairwise_sigmoid_loss
from train.loss.sigmoid import LossTerms, Pairing, batch_loss, sigmoid_loss


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)


def positives_of(positive: torch.Tensor) -> BatchPositives:
    """Every image a group of its own, every text a hash of its own, positive where a matrix says so."""
    images, texts = np.nonzero(positive.numpy())
    return BatchPositives([np.arange(positive.shape[1])], [(np.arange(len(positive)), GroupHashes(images, texts))])


class Problem:
    """A small batch: B images, B captions, then mined captions that meet all images or their own."""

    def __init__(self, num: int, num_mined: int, scope: str | None, seed: int, *, scale: float = 9.0, bias: float = -4.0) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.scope, self.num, self.weight = scope, num, 0.7
        self.images, self.texts = unit(num, 5, seed), unit(num + num_mined, 5, seed + 1)
        self.scale, self.bias = torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
        self.positive = (torch.rand(num, num + num_mined, generator=draws) < 0.2) | torch.eye(num, num + num_mined).bool()
        self.rows = torch.randint(num, (num_mined,), generator=draws)

    def pairing(self, block: int | None) -> Pairing:
        num_gathered = len(self.texts) if self.scope == "all" else self.num
        positives = positives_of(self.positive[:, :num_gathered])
        own = OwnPairs(self.rows, torch.zeros(len(self.rows), dtype=torch.bool)) if self.scope == "own" else None
        return Pairing(positives, (num_gathered,), self.num, own, self.weight, block=block)

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        return [value.to(dtype).clone().requires_grad_() for value in (self.images, self.texts, self.scale, self.bias)]

    def logits(self, images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return scale * images @ texts.T + bias

    def labels(self) -> torch.Tensor:
        """1, -1, or 0 for a mined caption and an image it does not meet."""
        labels = torch.where(self.positive, 1, -1)
        if self.scope == "own":
            own = torch.arange(self.num)[:, None] == self.rows[None]
            labels[:, self.num :] = torch.where(own, -1, 0)
        return labels

    def reference(self) -> tuple[float, float, list[torch.Tensor]]:
        """In-batch and mined term, and the gradients of the loss, of train/loss/reference.py in float64."""
        leaves, labels = self.leaves(), self.labels()
        logits = self.logits(*leaves)
        loss_with_mined_columns(logits, labels, self.weight).backward()
        in_batch, mined = (
            float(pairwise_sigmoid_loss(logits.detach()[:, part], labels[:, part])) for part in (slice(self.num), slice(self.num, None))
        )
        return in_batch, mined, [leaf.grad for leaf in leaves if leaf.grad is not None]

    def sign(self, row: int, column: int) -> float:
        return 1.0 if self.positive[row, column] and not (self.scope == "own" and column >= self.num) else -1.0

    def pairs(self) -> list[tuple[int, int]]:
        """Every pair of the loss: all images with all captions, and what the scope says of mined ones."""
        mined = range(self.num, len(self.texts))
        of_mined = [(row, column) for row in range(self.num) for column in mined if self.scope == "all"]
        of_mined += [(int(self.rows[column - self.num]), column) for column in mined if self.scope == "own"]
        return [(row, column) for row in range(self.num) for column in range(self.num)] + of_mined


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))


def looped(problem: Problem) -> tuple[float, float]:
    """In-batch and mined term by a double loop over Python floats."""
    terms = [0.0, 0.0]
    images, texts = problem.images.tolist(), problem.texts.tolist()
    for row, column in problem.pairs():
        logit = float(problem.scale) * sum(a * b for a, b in zip(images[row], texts[column], strict=True)) + float(problem.bias)
        terms[column >= problem.num] += minus_log_sigmoid(problem.sign(row, column) * logit)
    return terms[0] / problem.num, terms[1] / problem.num


def looped_gradients(problem: Problem) -> list[torch.Tensor]:
    """Gradients of the formula, pair by pair in float64, derived by hand: d/d logit = -y sigmoid(-y logit)."""
    images, texts = torch.zeros_like(problem.images), torch.zeros_like(problem.texts)
    scale = bias = 0.0
    for row, column in problem.pairs():
        cosine = float(problem.images[row] @ problem.texts[column])
        sign = problem.sign(row, column)
        by_logit = -sign / (1 + math.exp(sign * (float(problem.scale) * cosine + float(problem.bias)))) / problem.num
        by_logit *= problem.weight if column >= problem.num else 1.0
        images[row] += by_logit * problem.scale * problem.texts[column]
        texts[column] += by_logit * problem.scale * problem.images[row]
        scale, bias = scale + by_logit * cosine, bias + by_logit
    return [images, texts, *torch.tensor([scale, bias], dtype=torch.float64)]


def gradients(leaves: list[torch.Tensor], terms: LossTerms, factor: float = 1.0) -> list[torch.Tensor]:
    (factor * terms.total).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    norm = math.sqrt(sum(float((value**2).sum()) for value in expected))
    for one, other in zip(found, expected, strict=True):
        assert float(torch.linalg.vector_norm(one.double() - other)) <= tolerance * norm


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 9),
    num_mined=st.integers(0, 7),
    scope=st.sampled_from([None, "own", "all"]),
    block=st.integers(1, 10),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1.0, 10.0, 117.0]),
    bias=st.sampled_from([0.0, -12.9, 40.0]),
)
def test_loss_and_gradients_are_the_reference_in_blocks_of_any_size(
    num: int, num_mined: int, scope: str | None, block: int, seed: int, scale: float, bias: float
) -> None:
    problem = Problem(num, num_mined if scope else 0, scope, seed, scale=scale, bias=bias)
    leaves = problem.leaves()
    terms = sigmoid_loss(*leaves, problem.pairing(block))
    in_batch, mined, expected = problem.reference()
    assert (float(terms.in_batch), float(terms.mined)) == pytest.approx((in_batch, mined), rel=1e-11)
    assert float(terms.total.detach()) == pytest.approx(in_batch + 0.7 * mined, rel=1e-11)
    assert_close(gradients(leaves, terms), expected, 1e-10)


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 9),
    num_mined=st.integers(0, 7),
    scope=st.sampled_from([None, "own", "all"]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1.0, 10.0, 117.0]),
    bias=st.sampled_from([0.0, -12.9, 40.0]),
)
def test_the_reference_is_the_double_loop(num: int, num_mined: int, scope: str | None, seed: int, scale: float, bias: float) -> None:
    problem = Problem(num, num_mined if scope else 0, scope, seed, scale=scale, bias=bias)
    in_batch, mined, found = problem.reference()
    assert (in_batch, mined) == pytest.approx(looped(problem), rel=1e-11)
    assert_close(found, looped_gradients(problem), 1e-10)


def test_the_reference_by_hand() -> None:
    """One image of logits 2 (its caption) and -1 (mined): log(1 + e^-2) + 0.5 log(1 + e^-1)."""
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    found = loss_with_mined_columns(logits, torch.tensor([[1, -1]]), 0.5)
    assert float(found) == pytest.approx(0.126928011042972 + 0.5 * 0.313261687518223, abs=1e-14)
    assert float(loss_with_mined_columns(logits, torch.tensor([[1, 0]]), 0.5)) == pytest.approx(0.126928011042972, abs=1e-14)


def test_the_reference_is_the_sum_over_pairs_over_the_batch() -> None:
    logits_BB = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    by_hand = [math.log1p(math.exp(-value)) for value in (2.0, 1.0, -0.5, 3.0)]
    assert pairwise_sigmoid_loss(logits_BB, 2 * torch.eye(2) - 1).item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_float32_is_float64_to_1e_5() -> None:
    problem = Problem(40, 30, "all", 3, scale=110.0, bias=-12.0)
    leaves = problem.leaves(torch.float32)
    terms = sigmoid_loss(*leaves, problem.pairing(16))
    assert terms.total.dtype == torch.float32
    in_batch, mined, expected = problem.reference()
    assert float(terms.total.detach()) == pytest.approx(in_batch + 0.7 * mined, rel=1e-5)
    assert_close(gradients(leaves, terms), expected, 1e-5)


def test_the_incoming_gradient_multiplies_every_gradient() -> None:
    problem = Problem(6, 5, "own", 1)
    leaves = problem.leaves()
    found = gradients(leaves, sigmoid_loss(*leaves, problem.pairing(4)), factor=65536.0)
    assert_close(found, [65536.0 * value for value in problem.reference()[2]], 1e-10)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("scope", ["own", "all"])
def test_a_side_that_does_not_train_leaves_the_other_gradients_as_they_are(scope: str, frozen: tuple[int, ...]) -> None:
    problem = Problem(6, 5, scope, 2)
    leaves = problem.leaves()
    for place in frozen:
        leaves[place].requires_grad_(False)
    found = gradients(leaves, sigmoid_loss(*leaves, problem.pairing(4)))
    assert_close(found, [value for place, value in enumerate(problem.reference()[2]) if place not in frozen], 1e-10)


@pytest.mark.parametrize("bias", [-300.0, 300.0])
def test_large_logits_keep_their_loss_and_gradient(bias: float) -> None:
    problem = Problem(5, 3, "all", 4, scale=100.0, bias=bias)
    leaves = problem.leaves(torch.float32)
    terms = sigmoid_loss(*leaves, problem.pairing(2))
    in_batch, mined, expected = problem.reference()
    assert float(terms.total.detach()) == pytest.approx(in_batch + 0.7 * mined, rel=1e-5)
    assert_close(gradients(leaves, terms), expected, 1e-5)


def test_under_autocast_the_product_stays_float32() -> None:
    problem = Problem(8, 6, "own", 0, scale=100.0, bias=-10.0)
    plain_leaves, cast_leaves = problem.leaves(torch.float32), problem.leaves(torch.float32)
    plain = sigmoid_loss(*plain_leaves, problem.pairing(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sigmoid_loss(*cast_leaves, problem.pairing(4))
    assert torch.equal(cast.total, plain.total)
    for one, other in zip(gradients(cast_leaves, cast), gradients(plain_leaves, plain), strict=True):
        assert torch.equal(one, other)


def test_second_derivatives_and_a_second_backward_are_refused() -> None:
    problem = Problem(4, 0, None, 0)
    leaves = problem.leaves()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(sigmoid_loss(*leaves, problem.pairing(None)).total, leaves[:1], create_graph=True)
    total = sigmoid_loss(*leaves, problem.pairing(None)).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out once"):
        total.backward()


class _LargestMade(TorchDispatchMode):
    """Notes the most elements that any tensor made by any operation has."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        return made


@pytest.mark.parametrize("scope", [None, "own", "all"])
def test_no_tensor_is_ever_larger_than_the_embeddings_or_a_block(scope: str | None) -> None:
    num, block, width = 600, 32, 8
    images, texts = unit(num, width, 0).requires_grad_(), unit(2 * num, width, 1).requires_grad_()
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, -5.0))
    num_gathered = 2 * num if scope == "all" else num
    words = np.arange(num_gathered) % 7  # a text is positive for one image in seven: the pairs alone would be many times a block
    positives = BatchPositives([words], [(np.arange(num) % 7, GroupHashes(np.arange(7), np.arange(7)))])
    own = OwnPairs(torch.arange(num), torch.zeros(num, dtype=torch.bool)) if scope == "own" else None
    with _LargestMade() as made:
        sigmoid_loss(images, texts, scale, bias, Pairing(positives, (num_gathered,), num, own, 0.5, block=block)).total.backward()
    assert made.num_elements == texts.numel() < num * num / 30


@pytest.mark.parametrize("captions", [None, ["a dog", "a cat", "A dog!", "two birds", "a  cat"]])
def test_the_loss_of_a_batch_of_ones_own_is_the_reference(captions: list[str] | None) -> None:
    """Loss and gradients, with equal texts as positives."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.nn.functional.normalize(torch.randn(5, 7, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]
    labels = 2 * torch.eye(5, dtype=torch.float64) - 1
    if captions is not None:
        for one, other in ((0, 2), (1, 4)):
            labels[one, other] = labels[other, one] = 1
    gradients = []
    for of_reference in (True, False):
        images, texts = (one.clone().requires_grad_() for one in vectors)
        scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (8.0, -4.0))
        if of_reference:
            loss = pairwise_sigmoid_loss(scale * images @ texts.T + bias, labels)
        else:
            loss = batch_loss(images, texts, scale, bias, captions)
        loss.backward()
        gradients.append([loss.detach(), *(one.grad for one in (images, texts, scale, bias))])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_batch_whose_shapes_do_not_fit_is_refused() -> None:
    images = torch.eye(3)
    for texts, captions in ((torch.eye(4), None), (images, ["a"])):
        with pytest.raises(ValueError, match="expected images and texts of one shape"):
            batch_loss(images, texts, torch.tensor(1.0), torch.tensor(0.0), captions)

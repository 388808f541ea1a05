"""train/loss/distillation.py, through the loss: against the reference loss and Python floats, and against finite differences; the loss of
ranks too."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.train.loss.test_sigmoid import Problem, assert_close, gradients
from train.loss.distillation import OwnPairs, Ranking, SoftLabels, own_terms
from train.loss.reference import pairwise_sigmoid_loss
from train.loss.sigmoid import Pairing, sigmoid_loss

FORMS = ["labels", "lists"]
SCOPES = ["own", "all"]


class Distilled(Problem):
    """A batch with teacher logits for its mined captions; some are relabelled."""

    def __init__(self, num: int, num_mined: int, scope: str, form: str, strength: float, seed: int, *, bias: float = -4.0) -> None:
        super().__init__(num, num_mined, scope, seed, bias=bias)
        draws = torch.Generator().manual_seed(seed + 50)
        self.form, self.strength = form, strength
        self.rows = self.rows.sort().values
        self.teacher_m, self.teacher_b = (3 * torch.randn(count, generator=draws, dtype=torch.float64) for count in (num_mined, num))
        self.teacher_b[[row for row in range(num) if row not in self.rows.tolist()]] = torch.nan
        self.relabelled = torch.rand(num_mined, generator=draws) < 0.3

    def pairing(self, block: int | None) -> Pairing:
        soft = SoftLabels(self.teacher_m, self.strength, self.teacher_b if self.form == "lists" else None)
        return replace(super().pairing(block), own=OwnPairs(self.rows, self.relabelled, soft))

    def labels_of_others(self) -> torch.Tensor:
        """The labels with 0 for each mined caption and the image it was mined for: those pairs follow the teacher."""
        labels = torch.where(self.positive, 1, -1)
        own = torch.arange(self.num)[:, None] == self.rows[None]
        labels[:, self.num :] = torch.where(own, 0, labels[:, self.num :] if self.scope == "all" else 0)
        return labels


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def cross_entropy(label: float, z: float) -> float:
    return -label * log_sigmoid(z) - (1 - label) * log_sigmoid(-z)


def log_softmax(values: list[float]) -> list[float]:
    most = max(values)
    norm = most + math.log(sum(math.exp(value - most) for value in values))
    return [value - norm for value in values]


def own_loss(problem: Distilled, row: int, logits: list[float], own: float) -> float:
    """Loss of one image and the captions mined for it, given their logits."""
    places = [place for place in range(len(problem.rows)) if int(problem.rows[place]) == row]
    hard = [float(problem.relabelled[place]) for place in places]
    teacher, s = [float(problem.teacher_m[place]) for place in places], problem.strength
    if problem.form == "labels":
        labels = [s / (1 + math.exp(-t)) + (1 - s) * y for t, y in zip(teacher, hard, strict=True)]
        return sum(cross_entropy(label, z) for label, z in zip(labels, logits, strict=True))
    loss = (1 - s) * sum(cross_entropy(label, z) for label, z in zip(hard, logits, strict=True))
    if not places:
        return loss
    log_p, log_q = log_softmax([float(problem.teacher_b[row]), *teacher]), log_softmax([own, *logits])
    return loss + s * sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def formula(problem: Distilled) -> tuple[float, float]:
    """In-batch and mined term: the reference loss, with each image's own mined captions by the teacher."""
    logits, labels, num = problem.logits(*problem.leaves()).detach(), problem.labels_of_others(), problem.num
    in_batch, others = (float(pairwise_sigmoid_loss(logits[:, part], labels[:, part])) for part in (slice(num), slice(num, None)))
    own = 0.0
    for row in range(num):
        mined = logits[row, num:][problem.rows == row].tolist()
        own += own_loss(problem, row, mined, float(logits[row, row]))
    return in_batch, others + own / num


def differences(problem: Distilled, step: float = 1e-5) -> list[torch.Tensor]:
    """Gradient of the formula, by central differences of every input."""
    found = []
    for name in ("images", "texts", "scale", "bias"):
        values = getattr(problem, name)
        flat, gradient = values.view(-1), torch.zeros_like(values)
        for place in range(len(flat)):
            ends = []
            value = float(flat[place])
            for sign in (1, -1):
                flat[place] = value + sign * step
                in_batch, mined = formula(problem)
                ends.append(in_batch + problem.weight * mined)
            flat[place] = value
            gradient.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
        found.append(gradient)
    return found


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 7),
    num_mined=st.integers(0, 9),
    scope=st.sampled_from(SCOPES),
    form=st.sampled_from(FORMS),
    strength=st.sampled_from([0.3, 1.0]),
    block=st.integers(1, 10),
    bias=st.sampled_from([-12.9, 0.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_the_loss_is_the_formula_in_blocks_of_any_size(
    num: int, num_mined: int, scope: str, form: str, strength: float, block: int, bias: float, seed: int
) -> None:
    problem = Distilled(num, num_mined, scope, form, strength, seed, bias=bias)
    terms = sigmoid_loss(*problem.leaves(), problem.pairing(block))
    in_batch, mined = formula(problem)
    assert float(terms.in_batch) == pytest.approx(in_batch, rel=1e-11)
    assert float(terms.mined) == pytest.approx(mined, rel=1e-9, abs=1e-12)
    assert float(terms.total.detach()) == pytest.approx(in_batch + 0.7 * mined, rel=1e-10)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_gradients_are_differences_of_the_formula(scope: str, form: str, strength: float) -> None:
    problem = Distilled(5, 6, scope, form, strength, 5)
    assert len(set(problem.rows.tolist())) < 5 and bool(problem.relabelled.any())  # an image has none
    expected = differences(problem)
    for block in (None, 1, 3):
        leaves = problem.leaves()
        assert_close(gradients(leaves, sigmoid_loss(*leaves, problem.pairing(block))), expected, 1e-8)
    single = problem.leaves(torch.float32)
    assert_close(gradients(single, sigmoid_loss(*single, problem.pairing(None))), expected, 1e-5)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_side_that_does_not_train_leaves_the_other_gradients_as_they_are(form: str, scope: str, frozen: tuple[int, ...]) -> None:
    problem = Distilled(5, 6, scope, form, 0.7, 2)
    every, some = problem.leaves(), problem.leaves()
    for place in frozen:
        some[place].requires_grad_(False)
    expected = gradients(every, sigmoid_loss(*every, problem.pairing(2)))
    found = gradients(some, sigmoid_loss(*some, problem.pairing(2)))
    assert_close(found, [value for place, value in enumerate(expected) if place not in frozen], 1e-12)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_teacher_that_repeats_the_hard_labels_changes_nothing(scope: str) -> None:
    problem = Distilled(5, 7, scope, "labels", 1.0, 8)
    problem.teacher_m = torch.where(problem.relabelled, 800.0, -800.0).double()
    soft, hard = problem.leaves(), problem.leaves()
    pairing = problem.pairing(3)
    found, expected = sigmoid_loss(*soft, pairing), sigmoid_loss(*hard, replace(pairing, own=replace(pairing.own, soft=None)))
    assert torch.equal(found.total, expected.total)
    assert_close(gradients(soft, found), gradients(hard, expected), 1e-14)


def test_gradients_are_zero_where_student_and_teacher_agree_for_lists_up_to_a_shift() -> None:
    rows, agreed_m, own_b = torch.tensor([0, 0, 2]), torch.tensor([1.5, -3.0, 0.2]).double(), torch.tensor([4.0, 1.0, -1.0]).double()
    labels = own_terms(OwnPairs(rows, torch.zeros(len(rows), dtype=torch.bool), SoftLabels(agreed_m, 1.0)), agreed_m.clone(), None)
    assert float(labels.by_mined_m.abs().max()) < 1e-15
    moved = own_terms(OwnPairs(rows, torch.zeros(len(rows), dtype=torch.bool), SoftLabels(agreed_m, 1.0)), agreed_m + 2, None)
    assert bool((moved.by_mined_m > 0.01).all()) and float(moved.loss) > float(labels.loss)
    lists = own_terms(OwnPairs(rows, torch.zeros(len(rows), dtype=torch.bool), SoftLabels(agreed_m, 1.0, own_b)), agreed_m - 7, own_b - 7)
    assert lists.by_own_b is not None and float(lists.by_own_b.abs().max()) < 1e-15 and float(lists.by_mined_m.abs().max()) < 1e-15
    assert abs(float(lists.loss)) < 1e-14
    other = own_terms(OwnPairs(rows, torch.zeros(len(rows), dtype=torch.bool), SoftLabels(agreed_m, 1.0, own_b)), agreed_m + 1, own_b)
    assert other.by_own_b is not None and bool((other.by_mined_m > 0).all())
    assert (other.by_own_b < 0).tolist() == [True, False, True] and float(other.by_own_b[1]) == 0.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("logit", [-90.0, 90.0])
def test_large_logits_are_finite_and_keep_their_digits(form: str, logit: float) -> None:
    def terms(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        z_m, teacher_m = torch.tensor([logit, -logit]).to(dtype), torch.tensor([12.0, 12.0]).to(dtype)
        own_b = torch.tensor([logit / 3]).to(dtype) if form == "lists" else None
        found = own_terms(OwnPairs(torch.tensor([0, 0]), torch.tensor([False, False]), SoftLabels(teacher_m, 0.9, own_b)), z_m, own_b)
        return found.loss, found.by_mined_m

    for single, double in zip(terms(torch.float32), terms(torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-7)


class Ranked(Problem):
    """A batch whose mined captions are to score below the image's own one; some are positive."""

    def __init__(self, num: int, num_mined: int, margin: float, temperature: float, seed: int) -> None:
        super().__init__(num, num_mined, "own", seed, bias=-4.0)
        self.ranking = Ranking(margin, temperature)
        self.is_positive = torch.rand(num_mined, generator=torch.Generator().manual_seed(seed + 50)) < 0.3

    def pairing(self, block: int | None) -> Pairing:
        return replace(super().pairing(block), own=OwnPairs(self.rows, self.is_positive, ranking=self.ranking))

    def formula(self, fixed: tuple[float, float]) -> tuple[float, float]:
        """In-batch and mined term, by Python's floats; the mined one with this scale and bias."""
        logits, labels = self.logits(*self.leaves()).detach(), torch.where(self.positive, 1, -1)
        in_batch = float(pairwise_sigmoid_loss(logits[:, : self.num], labels[:, : self.num]))
        cosines = (self.images @ self.texts.T).tolist()
        mined = 0.0
        for place, row in enumerate(self.rows.tolist()):
            if not self.is_positive[place]:
                z, own = (fixed[0] * cosines[row][column] + fixed[1] for column in (self.num + place, row))
                mined += -log_sigmoid(-(z - own + self.ranking.margin) / self.ranking.temperature)
        return in_batch, mined / self.num


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize(("margin", "temperature"), [(0.0, 1.0), (2.5, 0.3)])
def test_ranking_is_its_formula_and_leaves_scale_and_bias_alone(margin: float, temperature: float, block: int | None) -> None:
    problem = Ranked(5, 9, margin, temperature, seed=3)
    assert 0 < int(problem.is_positive.sum()) < 9
    fixed = float(problem.scale), float(problem.bias)
    leaves = problem.leaves()
    terms = sigmoid_loss(*leaves, problem.pairing(block))
    assert (float(terms.in_batch), float(terms.mined)) == pytest.approx(problem.formula(fixed), rel=1e-12)
    found = gradients(leaves, terms)
    for name, gradient in zip(("images", "texts", "scale", "bias"), found, strict=True):
        values = getattr(problem, name)
        flat, expected, step = values.view(-1), torch.zeros_like(values), 1e-5
        for place in range(len(flat)):
            value, ends = float(flat[place]), []
            for sign in (1, -1):
                flat[place] = value + sign * step
                in_batch, mined = problem.formula(fixed)
                ends.append(in_batch + problem.weight * mined)
            flat[place] = value
            expected.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)

"""benchmarks/heads: its losses against float64 loops, its mining against the pairs that are true, its statistics against hand-made runs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.heads import __main__ as heads
from benchmarks.heads.__main__ import measure, near_misses
from benchmarks.heads.beds import Bed
from benchmarks.heads.features import Split, photographs
from benchmarks.heads.forms import CAP, Draws, Heads, Step, System, Table, first_of_text, hardness_weights, loss_of, mine, train_heads
from benchmarks.heads.page import compare
from benchmarks.heads.systems import SYSTEMS

IMAGES, EACH = 40, 2


@pytest.fixture
def split() -> Split:
    """Forty images of twenty groups, two captions each; the two images of a group share one of their texts."""
    torch.manual_seed(0)  # heads begin at the same weights in every run of a test
    draws = np.random.default_rng(0)
    image_C = np.repeat(np.arange(IMAGES), EACH)
    group_I = np.arange(IMAGES) // 2
    text_C = np.arange(IMAGES * EACH)
    text_C[2::4] = text_C[0::4]  # the first caption of a group's second image is that of its first
    images = draws.normal(size=(IMAGES, 6)).astype(np.float32)
    texts = (images[image_C][:, :5] + 0.5 * draws.normal(size=(IMAGES * EACH, 5))).astype(np.float32)
    return Split(images, texts, image_C, group_I, text_C)


def softplus(value: float) -> float:
    """log(1 + e^value) in float64."""
    return math.log1p(math.exp(value)) if value < 30 else value


@pytest.mark.parametrize("form", ["columns", "own_bias", "ranking", "images", "both"])
def test_the_loss_of_each_form_equals_a_loop(split: Split, form: str) -> None:
    system = System(form=form, count=2, weight=0.3)
    model = Heads(split).double().eval()
    with torch.no_grad():
        model.bias.fill_(-3.0)
        model.mined_bias.fill_(-2.0)
    rows, chosen = np.array([0, 4, 7]), np.array([1, 8, 15])
    mined, mined_images = np.array([[20, 31], [40, -1], [-1, -1]]), np.array([[9, -1], [30, 12], [-1, -1]])
    in_images = form in ("images", "both")
    step = Step(rows, chosen, None if form == "images" else mined, mined_images if in_images else None)
    wide = Split(split.images_IF.astype(np.float64), split.texts_CT.astype(np.float64), split.image_C, split.group_I, split.text_C)
    images, texts = (each.numpy() for each in model.vectors(wide))
    scale, bias = math.exp(model.log_scale.item()), -3.0
    expected = 0.0
    for i, image in enumerate(rows):
        for j, caption in enumerate(chosen):
            z = scale * float(images[image] @ texts[caption]) + bias
            expected += softplus(-z if i == j else z)
        for caption in mined[i] if form != "images" else []:
            if caption >= 0:
                cos = float(images[image] @ texts[caption])
                own = float(images[image] @ texts[chosen[i]])
                z = {"ranking": scale * (cos - own), "own_bias": scale * cos - 2.0}.get(form, scale * cos + bias)
                expected += 0.3 * softplus(z)
        for other in mined_images[i] if in_images else []:
            if other >= 0:
                expected += 0.3 * softplus(scale * float(images[other] @ texts[chosen[i]]) + bias)
    assert loss_of(model, wide, step, system).item() == pytest.approx(expected / 3, rel=1e-10)


def test_a_ranking_gives_scale_and_bias_no_gradient(split: Split) -> None:
    heads = Heads(split).eval()
    rows = np.arange(8)
    step = Step(rows, rows * EACH, np.tile([[70, 72]], (8, 1)), None)
    grads = []
    for weight in (0.1, 5.0):
        heads.zero_grad()
        loss_of(heads, split, step, System(form="ranking", weight=weight)).backward()
        grads.append((heads.log_scale.grad.item(), heads.bias.grad.item(), heads.image_linear.weight.grad.clone()))
    assert grads[0][:2] == pytest.approx(grads[1][:2], rel=1e-5)
    assert not torch.allclose(grads[0][2], grads[1][2])


def test_hardness_weights_by_hand() -> None:
    logits = torch.tensor([[0.0, -1.0, 5.0], [-2.0, 0.0, -3.0], [-2.0, -2.0, 0.0]])
    labels = 2 * torch.eye(3, dtype=torch.int64) - 1
    own = torch.zeros(3, 3)
    found = hardness_weights(logits, labels, own, beta=1.0)
    # 5 outscores the own pair by more than 1: weight 0. Its row's one other negative has all of the row's share.
    column_1 = 2 * math.exp(-1) / (math.exp(-1) + math.exp(-2))
    assert found[0].tolist() == pytest.approx([1.0, (1.0 + column_1) / 2, 0.0])
    assert found.diagonal().tolist() == [1.0] * 3
    one_row = torch.tensor([[0.0, -1.0] + [-99.0] * 60]), torch.tensor([[1] + [-1] * 61]), torch.zeros(1, 62)
    assert hardness_weights(*one_row, beta=1.0)[0, 1] == (CAP + 1) / 2


@pytest.mark.parametrize("system", [System(form="columns", **keys) for keys in ({"margin": None}, {"random": True}, {"margin": 0.0})])
@pytest.mark.parametrize("of_images", [True, False])
def test_what_is_true_is_never_mined(split: Split, system: System, of_images: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.heads.forms.POOL", 30)
    heads = Heads(split)
    found = mine(heads, split, system, np.random.default_rng(0), of_images=of_images, count=4).found_RK
    texts = [{split.text_C[c] for c in range(IMAGES * EACH) if split.group_I[split.image_C[c]] == group} for group in split.group_I]
    num_found = 0
    for row, items in enumerate(found):
        for item in items[items >= 0]:
            image, caption = (row, item) if of_images else (item, row)
            assert split.text_C[caption] not in texts[image]
            num_found += 1
        if of_images:
            kept = split.text_C[items[items >= 0]]
            assert len(set(kept.tolist())) == len(kept)
    assert num_found > len(found)


def test_the_first_of_each_text_is_kept() -> None:
    assert first_of_text(np.array([[3, 1, 3, 1, 2], [5, 5, 5, 4, 4]])).tolist() == [
        [True, True, False, False, True],
        [True, False, False, True, False],
    ]


def test_neighbours_come_into_a_batch_once_and_captions_differ(split: Split) -> None:
    draws = Draws(split, 16, 0)
    table = Table(np.tile(np.array([[0, 2, 4, 6, 8, 10, 12]]), (IMAGES, 1)))
    rows = draws.images(table, 1.0)
    assert len(set(rows.tolist())) == len(rows) <= 16
    later = [*rows, *(image for _ in range(2) for image in draws.images(None, 0.0))]
    assert set(later) | set(draws._order.tolist()) == set(range(IMAGES))  # what a neighbour displaced comes later
    captions = draws.captions(rows, 2).reshape(-1, 2)
    assert (captions[:, 0] != captions[:, 1]).all() and (split.image_C[captions] == rows[:, None]).all()


def test_training_is_the_seeds_own_and_learns(split: Split) -> None:
    runs = [train_heads(split, System(), seed=seed, steps=60, batch_size=20, rate=2e-3).heads for seed in (0, 0, 1)]
    first, again = (measure(each, split) for each in runs[:2])
    assert first["by_image"].tolist() == again["by_image"].tolist()
    assert first["image_to_text"] > 0.5 and not torch.equal(runs[0].log_scale, runs[2].log_scale)
    assert np.mean(first["by_image"]) == pytest.approx((first["image_to_text"] + first["text_to_image"]) / 2)
    near = near_misses(split)
    assert not split.is_true(np.arange(IMAGES), near).any()


def test_a_comparison_at_equal_cost_takes_the_plain_training_that_is_best_on_val_of_those_that_cost_no_more() -> None:
    draws = np.random.default_rng(0)

    def run(system: str, seed: int, recall: float, cost: float) -> dict[str, object]:
        by_image = (draws.random(400) < recall).astype(float)
        recall = float(by_image.mean())
        return {
            "system": system, "seed": seed, "image_to_text": recall, "text_to_image": recall, "near_miss": 0.5 + 0.01 * (seed % 2),
            "cost": cost, "by_image": by_image,
        }  # fmt: skip

    planned = {
        "plain": (0.2, 1.0), "plain x1.5": (0.22, 1.5), "plain x2": (0.1, 2.0), "plain x3": (0.9, 3.0), "mined": (0.6, 2.1),
        "cheap": (0.21, 1.0), "dear": (0.6, 9.0),
    }  # fmt: skip
    runs = [run(name, seed, *figures) for name, figures in planned.items() for seed in range(4)]
    on_val = {"plain": 0.2, "plain x1.5": 0.22, "plain x2": 0.1, "plain x3": 0.15}  # x3 is lucky on test, which decides nothing
    rows = {(row["system"], row["against"]): row for row in compare(runs, on_val)}
    assert set(rows) == {
        ("plain x1.5", "plain"), ("plain x2", "plain"), ("plain x3", "plain"), ("mined", "plain"), ("mined", "plain x1.5"),
        ("cheap", "plain"), ("dear", "plain"), ("dear", "plain x1.5"),
    }  # fmt: skip
    found = rows["mined", "plain x1.5"]
    assert found["verdict"] == "better" and found["times_cost"] == pytest.approx(2.1)
    expected = np.mean([run["image_to_text"] for run in runs if run["system"] == "mined"]) - np.mean(
        [run["image_to_text"] for run in runs if run["system"] == "plain x1.5"]
    )
    assert found["difference"] == pytest.approx(expected)
    assert rows["cheap", "plain"]["verdict"] == "no evidence"


def test_near_misses_by_hand() -> None:
    """The first caption of image 0 (text 0): most like it are texts 13 (the same), 1, 2, 3, 4, of which 1 is true of it too."""
    texts = np.array([[1.0, 0.0], [0.99, 0.1], [0.9, 0.4], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)
    texts = np.concatenate([texts, -texts])  # so that their mean is 0
    image_C, group_I = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]), np.array([0, 0, *range(1, 13)])
    split = Split(np.zeros((14, 2), dtype=np.float32), texts, image_C, group_I, np.arange(14))
    assert near_misses(split)[0].tolist() == [13, 2, 3, 4]


def test_the_commands_from_screening_to_the_page(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small split, with three systems: files are kept, the protocol comes before the figures, and another is refused."""
    bed = Bed({}, photographs, {}, 8, 16, 1e-3)
    monkeypatch.setattr(Bed, "read", lambda *_: {"train": split, "val": split, "test": split})
    monkeypatch.setattr(heads, "BEDS", {"photographs": bed})
    monkeypatch.setattr(heads, "SEEDS", (0, 1))
    monkeypatch.setattr(Bed, "systems", lambda _: {name: SYSTEMS[name] for name in ("plain", "plain x1.5", "two captions", "ranking")})
    monkeypatch.setattr("benchmarks.heads.forms.POOL", 30)
    output = tmp_path / "heads"
    for what in ("screen", "study"):
        monkeypatch.setattr("sys.argv", ["heads", what, "photographs=x", "--work", str(tmp_path / "work"), "--output", str(output)])
        heads.main()
    text = (tmp_path / "heads.md").read_text()
    assert "| two captions | plain |" in text and "8 steps of 16, 40 test images" in text
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "runs").iterdir()}
    assert len(kept) == 4 * 3 + 4 * 2
    monkeypatch.setattr("sys.argv", ["heads", "page", "--output", str(output)])
    heads.main()
    assert (tmp_path / "heads.md").read_text() == text
    monkeypatch.setattr("sys.argv", ["heads", "study", "photographs=x", "--work", str(tmp_path / "work"), "--output", str(output)])
    heads.main()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    monkeypatch.setattr(heads, "BEDS", {"photographs": Bed({}, photographs, {}, 9, 16, 1e-3)})
    with pytest.raises(SystemExit, match="another protocol"):
        heads.main()
    monkeypatch.setattr("sys.argv", ["heads", "screen", "photograph=x"])
    with pytest.raises(SystemExit):
        heads.main()

"""Any number of processes, and cached micro-batches, give the loss and gradients of one, which are the reference's (docs/guarantees.md)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.captions import normalise
from eval.encoder.encoder import image_features, text_features
from eval.processes import Processes
from tests.integration.train.gradients import CASES, SEED, Case, config, model_of, negatives_of, take_steps
from tests.nursery import Nursery
from tests.small_job import SmallWorld, load, write_pictures
from train.data.order import BatchOrder, chosen_caption, chosen_captions
from train.loss.reference import pairwise_sigmoid_loss

Division = tuple[int, int | None]
"""Number of processes, and rows of a cached micro-batch."""
PLAIN: Division = (1, None)
OTHERS: list[Division] = [(2, None), (4, None), (1, 16), (2, 24)]  # 24 does not divide the 32 of a process


@pytest.fixture(scope="module")
def world(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """64 images to train on, all of them in one batch."""
    return SmallWorld(write_pictures(tmp_path_factory.mktemp("wide"), {"train": 64}), small_world.base)


@pytest.fixture(scope="module")
def runs(world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[Division, Path]:
    """Division -> folder with a file per case."""
    folders = {}
    for world_size, micro_batch_size in (PLAIN, *OTHERS):
        folder = tmp_path_factory.mktemp("gradients")
        arguments = [str(world.manifest), str(world.base), str(folder)]
        arguments += [] if micro_batch_size is None else ["--micro-batch-size", str(micro_batch_size)]
        if world_size == 1:
            children = [nursery.start("tests.integration.train.gradients", arguments)]
        else:
            children = nursery.start_ranks("tests.integration.train.gradients", arguments, world_size)
        assert [child.wait() for child in children] == [0] * world_size, children[0].output()
        folders[world_size, micro_batch_size] = folder
    return folders


def assert_equal_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """The norm of the difference over the global norm, of all tensors together and of each."""
    assert found.keys() == expected.keys()
    names = [name for name in expected if name not in ("loss", "losses")]
    square = {name: float(np.sum((found[name].astype(np.float64) - expected[name].astype(np.float64)) ** 2)) for name in names}
    norm = np.sqrt(sum(float(np.sum(expected[name].astype(np.float64) ** 2)) for name in names))
    assert norm > 0.1
    assert np.sqrt(sum(square.values())) <= tolerance * norm
    worst = max(names, key=lambda name: square[name])
    assert np.sqrt(square[worst]) <= tolerance * norm, worst
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=tolerance)


@pytest.mark.parametrize("division", OTHERS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_processes_together_and_micro_batches_are_one(runs: dict[Division, Path], case: Case, division: Division) -> None:
    one, many = (dict(np.load(runs[name] / f"{case.name}.npz")) for name in (PLAIN, division))
    assert_equal_gradients(many, one, 1e-10 if case.double else 1e-5)


@cache
def true_captions(manifest: Path) -> list[set[str]]:
    """Normalised captions that are true of each image, by its group, from the manifest's words alone."""
    dataset = load(manifest)
    names = dataset.group_names()
    own = [
        {normalise(caption) for caption in dataset.captions[int(dataset.caption_offsets[i]) : int(dataset.caption_offsets[i + 1])]}
        for i in range(dataset.num_images)
    ]
    return [
        set().union(*(own[j] for j in range(len(own)) if j == i or (names[i] is not None and names[j] == names[i])))
        for i in range(len(own))
    ]


def reference(case: Case, world: SmallWorld) -> dict[str, np.ndarray]:
    """The loss of train/loss/reference.py on the whole matrix, in float64, and its gradients."""
    dataset = load(world.manifest)
    order = BatchOrder(dataset.num_images, dataset.num_images, SEED)
    job = config(case, str(world.manifest), str(world.base), dataset.num_images)
    tuned = model_of(case, job)
    images = order.images(1).tolist()
    captions = [caption for image in images for caption in chosen_captions(dataset, image, 0, SEED, case.captions_per_image)]
    negatives = negatives_of(dataset, order)
    logits_N, own_C = negatives.teacher_logits_N, negatives.own_teacher_logits_C
    assert logits_N is not None and own_C is not None
    mined = [(row, int(caption)) for row, image in enumerate(images) for caption in negatives.of(image)] if case.mined_scope else []
    vectors = image_features(tuned.siglip, torch.stack([tuned.inputs.pixels(dataset.load_image(image)) for image in images]))
    texts = text_features(tuned.siglip, tuned.inputs.token_ids([dataset.captions[c] for c in captions + [c for _, c in mined]]))
    scale, bias = tuned.siglip.logit_scale.exp(), tuned.siglip.logit_bias
    true = true_captions(world.manifest)

    logits = scale * vectors @ texts.T + bias
    of_texts = captions + [caption for _, caption in mined]
    labels = torch.tensor([[1 if normalise(dataset.captions[c]) in true[image] else -1 for c in of_texts] for image in images])
    count, first = len(images), len(captions)
    for place, (own, _) in enumerate(mined, first):
        is_own = torch.arange(count) == own
        if case.mined_scope == "own":
            labels[~is_own, place] = 0
        if case.distil is not None or case.ranking:
            labels[is_own, place] = 0

    def distilled(row: int, strength: float = 0.6, temperature: float = 2.0) -> torch.Tensor:
        """Loss of an image and the captions mined for it, by the words of docs/mining-how-to.md; none of these is relabelled."""
        image = images[row]
        places = [place for place, (own, _) in enumerate(mined) if own == row]
        z = logits[row, [row, *(first + place for place in places)]]
        teacher = torch.tensor([own_C[captions[row]], *logits_N[negatives.offsets[image] : negatives.offsets[image + 1]]]) / temperature
        hard = torch.log1p(torch.exp(z[1:])).sum()
        if case.distil == "lists":
            kl = torch.nn.functional.kl_div(z.log_softmax(0), teacher.double().log_softmax(0), reduction="sum", log_target=True)
            return (1 - strength) * hard + strength * kl
        label = strength * teacher[1:].double().sigmoid()
        return torch.nn.functional.binary_cross_entropy_with_logits(z[1:], label, reduction="sum")

    def ranked(row: int) -> torch.Tensor:
        """How far the captions mined for an image are from their place under its own; scale and bias are numbers."""
        z = scale.detach() * vectors[row] @ texts[[row, *(first + place for place, (own, _) in enumerate(mined) if own == row)]].T
        return torch.log1p(torch.exp((z[1:] - z[0] + 0.5) / 2.0)).sum()

    in_batch, of_mined = (pairwise_sigmoid_loss(logits[:, part], labels[:, part]) for part in (slice(first), slice(first, None)))
    if case.distil is not None or case.ranking:
        of_own = ranked if case.ranking else distilled
        of_mined = of_mined + sum(of_own(row) for row in {own for own, _ in mined}) / count
    loss = in_batch + 0.7 * of_mined
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in tuned.trainable() if parameter.grad is not None}
    numbers = [float(value.detach()) for value in (loss, in_batch, of_mined)]
    return gradients | {"loss": np.array([*numbers, len(mined)]), "losses": np.array(numbers[:1])}


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.double and not case.lora and not case.freeze],
    ids=lambda case: case.name,
)
def test_one_process_is_the_reference(runs: dict[Division, Path], world: SmallWorld, case: Case) -> None:
    assert_equal_gradients(dict(np.load(runs[PLAIN] / f"{case.name}.npz")), reference(case, world), 1e-10)


def test_the_batch_holds_the_hard_cases(world: SmallWorld) -> None:
    """Pairs positive across processes, by caption and by group; mined captions true of another image; a process that has none."""
    dataset = load(world.manifest)
    order = BatchOrder(dataset.num_images, dataset.num_images, SEED)
    images, half = order.images(1), dataset.num_images // 2
    captions = np.array([chosen_caption(dataset, int(image), 0, SEED) for image in images])
    positive = dataset.is_positive(images[:, None], dataset.caption_hash_C[captions][None, :])
    across = np.argwhere(positive[:half, half:]) + [0, half]
    same_group = [dataset.group_I[images[row]] == dataset.group_I[images[column]] for row, column in across]
    assert any(same_group) and not all(same_group)
    negatives = negatives_of(dataset, order)
    counts = np.diff(negatives.offsets)[images]
    assert counts[:half].sum() > 10 and counts[half:].sum() == 0
    mined = dataset.is_positive(images[:, None], dataset.caption_hash_C[negatives.captions_N][None, :])
    assert mined.any() and not dataset.is_positive(negatives.image_N, dataset.caption_hash_C[negatives.captions_N]).any()


def test_a_step_in_this_process_is_the_one_in_another(runs: dict[Division, Path], world: SmallWorld) -> None:
    found = take_steps(CASES[1], str(world.manifest), str(world.base), Processes())
    assert_equal_gradients(found, dict(np.load(runs[PLAIN] / f"{CASES[1].name}.npz")), 1e-5)

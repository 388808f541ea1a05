"""Steps, a mining, an evaluation, a reranking and a checkpoint on a pretend GPU and on the CPU: python -m tests.integration.train.pretended
MANIFEST BASE BLIP OUTPUT. For test_pretend_gpu.py; a process of its own, for torch keeps the device for good.

OUTPUT is a JSON object: what of a steady step made the host wait, by case, and the largest relative differences from the CPU.
"""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.encoder import embed_captions, embed_images
from eval.execution import Execution
from eval.processes import Processes
from eval.search.exact import search_both
from eval.search.retrieve import retrieve
from rerank.reorder.stages import score_stages
from rerank.scorers.base import CrossEncoder
from rerank.scorers.load import load_scorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import complete_scores
from tests import pretend_gpu
from tests.integration.train.gradients import CASES, SEED, Case, config, model_of, negatives_of
from tests.small_job import load
from tests.unit.train.reranker.match_bench import Bench
from train.config.mining import MiningConfig
from train.data.batches import BatchBuilder, Parts
from train.data.caption_pool import CaptionPool
from train.data.order import BatchOrder
from train.engine.checkpoint import Checkpoints, State
from train.mining.candidates import Retriever
from train.mining.mine import mine
from train.model.siglip import TunedModel, make_optimizer
from train.siglip.step import Stepper

STEPS = ("float32-none", "float32-all", "float64-all-text-frozen", "float64-own-labels", "float64-all-lists", "float64-own-ranking")
"""Cases that are tried; of float64 in float32."""
NUM_STEPS = 3
CPU = torch.device("cpu")
BATCH_SIZE = 24


def steps(case: Case, manifest: str, base: str, device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, int], TunedModel, Any]:
    """Losses, norms and the weights after the steps; what made the host wait in the last; the model and its optimizer."""
    dataset = load(Path(manifest))
    job = config(case, manifest, base, BATCH_SIZE, num_steps=NUM_STEPS)
    job = job.model_copy(update={"train": job.train.model_copy(update={"max_grad_norm": 0.5})})  # so that each is clipped
    order = BatchOrder(dataset.num_images, BATCH_SIZE, SEED)
    tuned = model_of(case, job)
    tuned.siglip.to(device)
    optimizer = make_optimizer(tuned, job.train)
    stepper = Stepper(job, tuned, optimizer, dataset, Processes(), contextlib.nullcontext)
    negatives = negatives_of(dataset, order) if case.mined_scope else None
    parts = Parts(captions_per_image=case.captions_per_image)
    builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, Processes(), parts=parts, negatives=negatives)
    results = []
    for step in range(1, NUM_STEPS + 1):
        batch = builder.join([builder[step, part] for part in range(builder.num_parts(step))])
        with pretend_gpu.counting() as seen:
            results.append(stepper.train_step(batch))
    found = {"losses": np.array([(one.loss, one.loss_in_batch, one.loss_mined, one.grad_norm, one.logit_scale) for one in results])}
    found |= {name: parameter.detach().cpu().numpy().copy() for name, parameter in tuned.trainable()}
    return found, dict(seen.waits), tuned, optimizer


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of an array by its norm."""
    return max(float(np.linalg.norm(one[name] - other[name]) / max(np.linalg.norm(other[name]), 1e-3)) for name in other)


def joined(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As one array: the bias of a key has a gradient of 0 but for rounding, of which Adam makes a step (docs/numerics.md)."""
    return {"": np.concatenate([value.ravel() for value in weights.values()])}


def other_paths(manifest: str, blip: str, tuned: TunedModel, optimizer: Any, folder: Path) -> dict[str, np.ndarray]:
    """What embedding, evaluation, mining and reranking give with a model where it lies; a checkpoint of it is written and read."""
    train, val = load(Path(manifest)), load(Path(manifest), "val")
    device = next(tuned.siglip.parameters()).device
    found = {
        "images": embed_images(tuned.siglip, tuned.inputs, train, block=8),
        "captions": embed_captions(tuned.siglip, tuned.inputs, train.captions, block=8),
    }
    stage = retrieve("tuned", tuned.siglip, tuned.inputs, val)
    found["ranks"] = stage.rankings["text_to_image"].top_indices_QK.astype(np.float64)
    config = MiningConfig(mine_every_epochs=1, negatives_per_image=2, pool_top_k=40)
    negatives, _ = mine(Retriever(tuned.siglip, tuned.inputs), CaptionPool(train), config)
    found |= {"mined": negatives.captions_N.astype(np.float64), "margins": negatives.margins_N}
    with torch.no_grad(), mock.patch.object(CrossEncoder, "begin", CrossEncoder.begin.__wrapped__):  # type: ignore[attr-defined]
        found["reranked"] = score_stages(val, [stage], load_scorer(blip, device=device), 4).scores_N
    state = State(step=1, num_metrics_lines=1, base_sha256="base", data_sha256="data")
    Checkpoints(folder).save(state, tuned, optimizer, None)
    before = [parameter.detach().clone() for _, parameter in tuned.trainable()]
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.zero_()
    Checkpoints(folder).load_weights(1, tuned)
    Checkpoints(folder).load_optimizer(1, tuned, optimizer)
    same = [bool((now == then).all()) for (_, now), then in zip(tuned.trainable(), before, strict=True)]
    assert all(same)
    return found


def reranking_waits(manifest: str, blip: str) -> dict[str, int]:
    """What made the host wait in a reranking of a few pictures, after the first, and in the second step of the reranker's tuning."""
    val, begin = load(Path(manifest), "val"), CrossEncoder.begin.__wrapped__  # type: ignore[attr-defined]
    lists = CandidateLists.of_pairs(np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3))
    with torch.no_grad(), mock.patch.object(CrossEncoder, "begin", begin):
        scorer = load_scorer(blip, device=pretend_gpu.DEVICE)
        with pretend_gpu.counting() as scored:
            complete_scores(scorer, val, lists)
    made = Bench.make(Path(manifest), blip, micro_batch_size=3, what="all")
    made.tuned.module.to(pretend_gpu.DEVICE)
    made.step(contextlib.nullcontext)
    assert made.stepper is not None
    with pretend_gpu.counting() as stepped:
        made.stepper.train_step(made.batch)
    return {f"{what}: {place}": count for what, seen in (("reranking", scored), ("step", stepped)) for place, count in seen.waits.items()}


def search_waits() -> dict[str, int]:
    """What made the host wait in a search of six tiles in both directions, with many ties."""
    draws = np.random.default_rng(0)
    images_ID, captions_CD = (draws.integers(-1, 2, (count, 3)).astype(np.float32) for count in (2500, 3000))
    of_image = np.arange(3000) % 2500
    order = np.lexsort((np.arange(3000), of_image))
    to_text = PositivePairs(np.concatenate([[0], np.cumsum(np.bincount(of_image, minlength=2500))]), order.astype(np.int64))
    to_image = PositivePairs(np.arange(3001), of_image)
    with pretend_gpu.counting() as seen:
        on_gpu = search_both(images_ID, captions_CD, to_text, to_image, 5, execution=Execution(device=pretend_gpu.DEVICE))
    on_cpu = search_both(images_ID, captions_CD, to_text, to_image, 5)
    for direction, ranking in on_gpu.items():
        assert ranking.top_indices_QK.tobytes() == on_cpu[direction].top_indices_QK.tobytes()
        assert ranking.positive_ranks_P.tolist() == on_cpu[direction].positive_ranks_P.tolist()
    return dict(seen.waits)


def main() -> None:
    """Every case in single precision, and the other paths once."""
    manifest, base, blip, output = sys.argv[1:]
    record: dict[str, Any] = {"waits": {}, "differences": {}}
    for case in (replace(case, double=False) for case in CASES if case.name in STEPS):
        on_cpu = steps(case, manifest, base, CPU)
        with pretend_gpu.mode():
            on_gpu = steps(case, manifest, base, pretend_gpu.DEVICE)
        name = case.name.replace("64", "32")
        losses, found = on_cpu[0].pop("losses"), on_gpu[0].pop("losses")
        record["waits"][name] = on_gpu[1]
        record["differences"][name] = difference({"": found}, {"": losses})
        record["differences"][f"{name}, weights"] = difference(joined(on_gpu[0]), joined(on_cpu[0]))
    paths = other_paths(manifest, blip, *on_cpu[2:], Path(output).parent / "cpu")
    with pretend_gpu.mode(), pretend_gpu.counting() as seen:
        embed_images(on_gpu[2].siglip, on_gpu[2].inputs, load(Path(manifest)), block=8)
    record["waits"]["embedding"] = dict(seen.waits)
    with pretend_gpu.mode():
        record["waits"]["search"] = search_waits()
    with pretend_gpu.mode():
        record["waits"]["reranking"] = reranking_waits(manifest, blip)
    with pretend_gpu.mode():
        on_device = other_paths(manifest, blip, *on_gpu[2:], Path(output).parent / "gpu")
    record["differences"] |= {name: difference({name: on_device[name]}, {name: paths[name]}) for name in paths}
    Path(output).write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Steps, a mining, an evaluation, a reranking, a checkpoint and a resume on a pretend GPU: python -m tests.integration.train.pretended
MANIFEST BASE BLIP FOLDER. For test_pretend_gpu.py; processes of their own, for torch keeps the device for good.

One process compares with the CPU and writes FOLDER/1.npz, what the CPU found; several compare with that. Each writes FOLDER/W-RANK.json:
what of a steady step made the host wait, what the processes told one another in it, by case, and the largest relative differences.
"""

import contextlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

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
from train.loss import sigmoid
from train.mining.candidates import Retriever, find_candidates
from train.mining.mine import mine
from train.model.siglip import TunedModel, make_optimizer
from train.optim import update
from train.siglip.step import Stepper

STEPS = ("float32-none", "float32-all", "float64-all-text-frozen", "float64-own-labels", "float64-all-lists", "float64-own-ranking")
"""Cases that are tried; of float64 in float32."""
TOGETHER = [("float32-none", None), ("float32-own", 5), ("float32-all", 5), ("float64-all", None)]
"""Cases that two processes try, and rows of a micro-batch: some have cached micro-batches of the texts alone; four try the last."""
RINGED = "float32-own"
"""The case whose texts are more than is held at once."""
NUM_STEPS = 3
CPU = torch.device("cpu")
BATCH_SIZE = 24


@dataclass
class Taken:
    """Steps of a case.

    Attributes:
        found: losses, norms and the weights after the steps.
        seen: what was counted in the last.
    """

    found: dict[str, np.ndarray]
    seen: pretend_gpu.Seen
    stepper: Stepper
    builder: BatchBuilder
    tuned: TunedModel
    optimizer: Any

    @property
    def record(self) -> dict[str, Any]:
        """What was counted, for JSON."""
        waits = dict(self.seen.waits + self.seen.late)
        return {"waits": waits, "exchanges": self.seen.exchanges, "operations": self.seen.num_operations}


def setup(
    case: Case, manifest: str, base: str, device: torch.device, processes: Processes = Processes(), micro_batch_size: int | None = None
) -> Taken:
    """A case before its first step."""
    dataset = load(Path(manifest))
    job = config(case, manifest, base, BATCH_SIZE, micro_batch_size=micro_batch_size, num_steps=NUM_STEPS)
    job = job.model_copy(update={"train": job.train.model_copy(update={"max_grad_norm": 0.5})})  # so that each is clipped
    order = BatchOrder(dataset.num_images, BATCH_SIZE, SEED)
    tuned = model_of(case, job)
    tuned.siglip.to(device)
    optimizer = make_optimizer(tuned, job.train)
    stepper = Stepper(job, tuned, optimizer, dataset, processes, contextlib.nullcontext)
    negatives = negatives_of(dataset, order) if case.mined_scope else None
    parts = Parts(captions_per_image=case.captions_per_image)
    builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, processes, parts=parts, negatives=negatives)
    return Taken({}, pretend_gpu.Seen(), stepper, builder, tuned, optimizer)


def steps(made: Taken, first: int = 1, last: int = NUM_STEPS) -> Taken:
    """The same after steps."""
    results = []
    for step in range(first, last + 1):
        batch = made.builder.join([made.builder[step, part] for part in range(made.builder.num_parts(step))])
        with pretend_gpu.counting() as made.seen:
            results.append(made.stepper.train_step(batch))
    losses = np.array([(one.loss, one.loss_in_batch, one.loss_mined, one.grad_norm, one.logit_scale) for one in results])
    weights = {name: parameter.detach().cpu().numpy().copy() for name, parameter in made.tuned.trainable()}
    made.found = {"losses": losses} | weights
    return made


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of an array by its norm."""
    return max(float(np.linalg.norm(one[name] - other[name]) / max(np.linalg.norm(other[name]), 1e-3)) for name in other)


def joined(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As one array: the bias of a key has a gradient of 0 but for rounding, of which Adam makes a step (docs/numerics.md)."""
    return {"": np.concatenate([value.ravel() for value in weights.values()])}


def searched(manifest: str, tuned: TunedModel, processes: Processes = Processes()) -> tuple[dict[str, np.ndarray], Any]:
    """What embedding, evaluation and mining give with a model where it lies; the evaluation's stage."""
    train, val = load(Path(manifest)), load(Path(manifest), "val")
    execution = Execution(processes=processes, device=next(tuned.siglip.parameters()).device)
    found = {
        "images": embed_images(tuned.siglip, tuned.inputs, train, block=8, execution=execution),
        "captions": embed_captions(tuned.siglip, tuned.inputs, train.captions, block=8, execution=execution),
    }
    stage = retrieve("tuned", tuned.siglip, tuned.inputs, val, execution=execution)
    found["ranks"] = stage.rankings["text_to_image"].top_indices_QK.astype(np.float64)
    config = MiningConfig(mine_every_epochs=1, negatives_per_image=2, pool_top_k=40)
    negatives, _ = mine(Retriever(tuned.siglip, tuned.inputs), CaptionPool(train), config, execution=execution)
    return found | {"mined": negatives.captions_N.astype(np.float64), "margins": negatives.margins_N}, stage


def other_paths(manifest: str, blip: str, tuned: TunedModel, optimizer: Any, folder: Path) -> dict[str, np.ndarray]:
    """What embedding, evaluation, mining and reranking give with a model where it lies; a checkpoint of it is written and read."""
    found, stage = searched(manifest, tuned)
    val, device = load(Path(manifest), "val"), next(tuned.siglip.parameters()).device
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


def alone(manifest: str, base: str, blip: str, folder: Path) -> dict[str, Any]:
    """Every case in single precision, and the other paths once."""
    record: dict[str, Any] = {"steps": {}, "differences": {}, "waits": {}}
    reference: dict[str, np.ndarray] = {}
    for case in (replace(case, double=False) for case in CASES if case.name in STEPS):
        on_cpu = steps(setup(case, manifest, base, CPU))
        with pretend_gpu.mode():
            on_gpu = steps(setup(case, manifest, base, pretend_gpu.DEVICE))
        name = case.name.replace("64", "32")
        record["steps"][name] = on_gpu.record
        record["differences"] |= step_differences(name, on_gpu.found, on_cpu.found)
        reference |= {f"{name}/{key}": value for key, value in on_cpu.found.items()}
    for case in CASES:
        if case.name in ("float32-own", "float64-all"):  # for several processes
            reference |= {f"{case.name}/{key}": value for key, value in steps(setup(case, manifest, base, CPU)).found.items()}
    paths = other_paths(manifest, blip, on_cpu.tuned, on_cpu.optimizer, folder / "cpu")
    with pretend_gpu.mode(), pretend_gpu.counting() as seen:
        embed_images(on_gpu.tuned.siglip, on_gpu.tuned.inputs, load(Path(manifest)), block=8)
    record["waits"]["embedding"] = dict(seen.waits)
    with pretend_gpu.mode(), pretend_gpu.counting() as seen:
        found = Retriever(on_gpu.tuned.siglip, on_gpu.tuned.inputs), CaptionPool(load(Path(manifest)))
        find_candidates(*found, 20, execution=Execution(device=pretend_gpu.DEVICE))
    record["waits"]["mining"] = dict(seen.waits)
    with pretend_gpu.mode():
        record["waits"]["search"] = search_waits()
    with pretend_gpu.mode():
        record["waits"]["reranking"] = reranking_waits(manifest, blip)
    with pretend_gpu.mode():
        on_device = other_paths(manifest, blip, on_gpu.tuned, on_gpu.optimizer, folder / "gpu")
    record["differences"] |= {name: difference({name: on_device[name]}, {name: paths[name]}) for name in paths}
    np.savez(folder / "1.npz", **reference)
    return record


def step_differences(name: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Of losses and norms, and of the weights after the steps."""
    apart = [{key: value for key, value in one.items() if key != "losses"} for one in (found, expected)]
    losses = difference({"": found["losses"]}, {"": expected["losses"]})
    return {name: losses, f"{name}, weights": difference(joined(apart[0]), joined(apart[1]))}


def together(manifest: str, base: str, folder: Path) -> dict[str, Any]:
    """This process's part of steps, and of two processes' evaluation, mining, checkpoint and resume."""
    record: dict[str, Any] = {"steps": {}, "differences": {}}
    reference = dict(np.load(folder / "1.npz"))
    dist.init_process_group("gloo")
    update._SEGMENT_BYTES = 1 << 10  # so that even a tiny model has several
    with pretend_gpu.mode(), pretend_gpu.nccl():
        processes = Processes.current()
        for name, micro_batch_size in TOGETHER if processes.world_size == 2 else TOGETHER[-1:]:
            (case,) = (case for case in CASES if case.name == name)
            held_bytes = 0 if name == RINGED else sigmoid.GATHERED_BYTES
            with mock.patch.object(sigmoid, "GATHERED_BYTES", held_bytes):
                taken = steps(setup(case, manifest, base, pretend_gpu.DEVICE, processes, micro_batch_size))
            expected = {key.partition("/")[2]: value for key, value in reference.items() if key.startswith(f"{name}/")}
            record["steps"][name] = taken.record
            record["differences"] |= step_differences(name, taken.found, expected)
        if processes.world_size == 2:
            goes_on(case, manifest, base, taken, processes, folder / "together")
            of_two, of_one = (searched(manifest, taken.tuned, own)[0] for own in (processes, Processes()))
            record["differences"] |= {name: difference({name: of_two[name]}, {name: of_one[name]}) for name in of_one}
    dist.destroy_process_group()
    return record


def goes_on(case: Case, manifest: str, base: str, straight: Taken, processes: Processes, folder: Path) -> None:
    """A checkpoint is written and gone on from, and the step after it has the bits of the run that goes straight on."""
    if processes.is_main:
        state = State(step=NUM_STEPS, num_metrics_lines=1, base_sha256="base", data_sha256="data")
        Checkpoints(folder).save(state, straight.tuned, straight.optimizer, None)
    processes.barrier()
    resumed = setup(case, manifest, base, pretend_gpu.DEVICE, processes)
    Checkpoints(folder).load_weights(NUM_STEPS, resumed.tuned)
    Checkpoints(folder).load_optimizer(NUM_STEPS, resumed.tuned, resumed.optimizer)
    resumed, straight = (steps(one, NUM_STEPS + 1, NUM_STEPS + 1) for one in (resumed, straight))
    assert resumed.found.keys() == straight.found.keys()
    assert all(resumed.found[name].tobytes() == straight.found[name].tobytes() for name in straight.found)


def main() -> None:
    """One process, or one of several."""
    manifest, base, blip, folder = sys.argv[1:]
    world_size, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    found = together(manifest, base, Path(folder)) if world_size > 1 else alone(manifest, base, blip, Path(folder))
    (Path(folder) / f"{world_size}-{rank}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

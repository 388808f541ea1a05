"""Everything a job needs before its first step: processes, data, model, optimizer; each derived quantity told once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from tqdm import tqdm

from eval.checkpoint import load_siglip_config
from eval.choices.choice_set import read_choices
from eval.dataset import RetrievalSet
from eval.leakage import Leakage
from eval.processes import Processes
from eval.qrels import read_qrels
from eval.truth import judged_by, known_pairs
from rerank.choices import stage_names
from rerank.expansions.paraphraser import Paraphraser
from rerank.pair_store import PairStore
from rerank.scorer import load_scorer
from train.agreement import check_agreement
from train.approximate import require_faiss
from train.arms import OWN_STAGES, check_comparisons, checkpoints, combining
from train.batches import BatchOrder
from train.composition import describe_form, turns_of
from train.config import JobConfig, RunConfig
from train.denoising import matcher_fingerprint
from train.frozen import frozen_lines
from train.machine import start_machine
from train.micro_batches import cached_size
from train.mining_members import members_sha256
from train.model import TunedModel, build_model, make_optimizer, resolve_base
from train.pool import CaptionPool
from train.scratch import write_scratch
from train.seeds import Turns
from train.sharding import check_shardable, shard
from train.shared_folder import SharedFolder
from train.splits import Splits
from train.watch import WatchSet


@dataclass
class Job:
    """A configured job on this process.

    Attributes:
        final_set: the split of the final evaluation, test or else val, with the right answers `evaluation` asks for; None without either.
        pool: the captions that can be mined.
        data_sha256: of the train split and of further captions that can be mined.
        matcher_sha256: fingerprint of the cross-encoder that mining asks; None where it asks none.
        members_sha256: of the fixed checkpoints that mine beside the model; None where there are none.
        base: checkpoint the job starts from, as this process reads it.
        shared: the run's folder, for every process to read.
    """

    config: JobConfig
    folder: Path
    accelerator: Accelerator
    processes: Processes
    say: Callable[[str], None]
    train_set: RetrievalSet
    val_set: RetrievalSet | None
    test_set: RetrievalSet | None
    final_set: RetrievalSet | None
    unused_splits: dict[str, int]
    data_sha256: str
    truth: set[tuple[str, str]] | None
    leakages: list[Leakage]
    base: str
    tuned: TunedModel
    optimizer: torch.optim.AdamW
    order: Turns
    pool: CaptionPool
    shared: SharedFolder
    matcher_sha256: str | None
    members_sha256: str | None
    watch_sets: list[WatchSet] = field(default_factory=list)
    expand_lines: list[str] = field(default_factory=list)

    @property
    def data_place(self) -> str:
        """Where what is trained on comes from, in words."""
        return f"{self.config.data.source}{self.pool.place}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Arithmetic of the towers in training."""
        return self.accelerator.autocast()


class HasData(Protocol):
    """A job of any kind, as far as its data goes."""

    train_set: RetrievalSet
    val_set: RetrievalSet | None
    test_set: RetrievalSet | None
    unused_splits: dict[str, int]


def start_processes(config: JobConfig) -> tuple[Accelerator, Processes]:
    """Bring up Accelerate, and check what the machine must have for this job.

    Raises:
        UserError: as train.machine.start_machine, or the index is not to be had here, or weights in parts do not go with the rest.
    """

    def check(processes: Processes) -> None:
        check_shardable(config, processes)
        if config.mining is not None and config.mining.index == "faiss":
            require_faiss()

    return start_machine(config.train, check)


def prepare(config: JobConfig, splits: Splits, accelerator: Accelerator, processes: Processes) -> Job:
    """Build the model and the optimizer. Call on every process.

    Raises:
        UserError: the base, the reranker, the matcher or the members of mining or the truth file cannot be used.
        OSError: the weights to begin from cannot be written.
    """
    folder = config.run_folder
    say = speaker(processes)
    pool = CaptionPool(splits.train, splits.further)
    shared = SharedFolder(folder, processes)
    base = _base(config, splits, processes, shared)
    matcher_sha256 = processes.together(lambda: matcher_fingerprint(config))  # what is refused is refused now, not at the first mining
    members = processes.together(lambda: members_sha256(config.mining))
    truth, tuned, final_set = processes.together(
        lambda: (known_truth(config, splits.train), build_model(config.model, base, config.seed), _prepare_final(config, splits))
    )
    data_sha256 = pool.data_sha256()
    check_agreement(config, tuned.base_sha256, data_sha256, matcher_sha256, members, processes)
    if config.train.shard:
        shard(tuned.siglip, processes, accelerator.device)
    tuned.siglip.to(accelerator.device)
    return Job(
        config,
        folder,
        accelerator,
        processes,
        say,
        splits.train,
        splits.val,
        splits.test,
        final_set,
        splits.unused,
        data_sha256,
        truth,
        splits.leakages(),
        base,
        tuned,
        make_optimizer(tuned, config.train),
        turns_of(config.mining, BatchOrder(splits.train.num_images, config.train.batch_size, config.seed)),
        pool,
        shared,
        matcher_sha256,
        members,
        splits.watch,
        splits.expand_lines,
    )


def _base(config: JobConfig, splits: Splits, processes: Processes, shared: SharedFolder) -> str:
    """Where this process reads the checkpoint to start from; random weights are written first, by the main process."""
    base = resolve_base(config, str(config.run_folder / "scratch"))
    scratch = config.model.scratch
    if scratch is None:
        return base

    def write() -> None:
        if processes.is_main and not Path(base).is_dir():
            write_scratch(Path(base), scratch, splits.train, config.seed)

    processes.together(write)
    return str(shared.bring(Path(base)))


def known_truth(config: RunConfig, train_set: RetrievalSet) -> set[tuple[str, str]] | None:
    """(image id, caption id) of the qrels' pairs among the train split, of whichever direction they were written; None without qrels."""
    if config.data.truth is None:
        return None
    (images_P, captions_P), _ = known_pairs(train_set, read_qrels(config.data.truth))
    return {(train_set.image_ids[image], train_set.caption_id(caption)) for image, caption in zip(images_P, captions_P, strict=True)}


def _prepare_final(config: JobConfig, splits: Splits) -> RetrievalSet | None:
    """The split of the final evaluation, judged as asked.

    Reranker, the folder of its scores, further checkpoints, qrels and comparisons are needed at the very end only; but what is refused must
    be refused now, not after hours of training.

    Raises:
        UserError: one of them cannot be used.
        WriteError: the folder cannot be made.
    """
    final, asked = splits.test or splits.val, config.evaluation
    if final is None:
        return None
    scorer_name = load_scorer(config.rerank.model, device="cpu").name if config.rerank is not None else None
    if config.pair_scores_folder is not None:
        PairStore(config.pair_scores_folder)
    for path in config.choices or ():
        read_choices(path)
        stage_names(list(checkpoints(config, "", "")), scorer_name)
    for name, checkpoint in checkpoints(config, "", "").items():
        if name not in OWN_STAGES:
            load_siglip_config(checkpoint)
    check_comparisons(config, scorer_name)
    for expansion in combining(config).expansions.values():
        for split in (final, splits.val):
            if split is not None and not isinstance(expansion, Paraphraser):  # what a model would say is not worth waiting for here
                expansion.of(split)
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    return judged_by(final, protocol=asked.protocol, near_duplicates=asked.near_duplicates, qrels=qrels)


def speaker(processes: Processes) -> Callable[[str], None]:
    """What prints a line on the main process, beside the progress bar."""

    def say(text: str) -> None:
        if processes.is_main:
            tqdm.write(text)

    return say


def data_line(job: HasData) -> str:
    """What there is to train on, to evaluate on, and what no split of the run uses."""
    return (
        f"data      {job.train_set.num_images:,} images with {job.train_set.num_captions:,} captions to train on"
        + "".join(f"; {split.split}: {split.num_images:,} / {split.num_captions:,}" for split in (job.val_set, job.test_set) if split)
        + "".join(f"; not used: split {name!r}, {number:,} image(s)" for name, number in sorted(job.unused_splits.items()))
    )


def leakage_lines(leakages: Sequence[Leakage]) -> list[str]:
    """What the splits share, said before the first step."""
    return [f"leakage   {leak}" for leak in leakages if leak.num_shared_images or leak.num_shared_captions or leak.num_shared_groups_images]


def describe(job: Job) -> list[str]:
    """What a person should know before the first step, line by line."""
    config, order = job.config, job.order
    num_trained = sum(parameter.numel() for _, parameter in job.tuned.trainable())
    num_all = sum(parameter.numel() for parameter in job.tuned.siglip.parameters())
    share = config.train.batch_size // job.processes.world_size
    lines = [
        f"model     {job.base}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.2f} M of them train",
        data_line(job),
        *job.expand_lines,
        f"loop      {config.train.max_steps:,} steps of {config.train.batch_size} images = "
        f"{order.num_epochs(config.train.max_steps):.1f} epochs, "
        f"{config.train.num_warmup_steps} of them warm-up; {config.train.precision}",
        f"machine   {job.processes.world_size} process(es) x {share} images on {job.accelerator.device}, "
        f"{torch.get_num_threads()} thread(s) each",
        *describe_form(config.mining, order),
    ]
    most_mined = config.mining.most_columns if config.mining is not None else 0
    micro_batch_size = cached_size(config.train.micro_batch_size, share, most_mined)
    if micro_batch_size is not None:
        texts = f" and their texts, mined ones included (up to {share * (1 + most_mined)})," if most_mined else " and as many captions"
        lines.append(
            f"memory    cached micro-batches: {share} images{texts} {micro_batch_size} at a time; what trains and does not fit into one is "
            "embedded twice"
        )
    if config.train.shard:
        lines.append(f"memory    weights, gradients and moments in parts, one on each of {job.processes.world_size} processes")
    lines += frozen_lines(config)
    lines += [
        f"watch     {watched.config.name}: {watched.dataset.num_images:,} images with {watched.dataset.num_captions:,} captions; "
        f"on a drop: {watched.config.on_drop}"
        for watched in job.watch_sets
    ]
    if job.pool.further.texts:
        lines.append(f"pool      {len(job.pool.further.texts):,} further captions without images, to mine among")
    if config.mining is not None and config.mining.ensemble:
        lines.append(
            f"ensemble  {', '.join(config.mining.ensemble)}: mine too; run once, their embeddings kept in {job.folder / 'ensemble'}"
        )
    if job.truth is not None:
        lines.append(f"truth     {len(job.truth):,} further true pairs, to count false negatives with")
    return lines + leakage_lines(job.leakages)

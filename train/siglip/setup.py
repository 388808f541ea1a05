"""Everything is checked and built before the first step: processes, base, cross-encoder, data, model, optimizer."""

from pathlib import Path

from accelerate import Accelerator

from eval.choices.choice_set import read_choices
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.processes import Processes
from rerank.expansions.generated import Paraphraser
from rerank.reorder.choices import stage_names
from rerank.scorers.load import load_scorer
from rerank.scoring.score_cache import ScoreCache
from train.config.job import JobConfig
from train.data.caption_pool import CaptionPool
from train.data.mined_order import epoch_order
from train.data.order import BatchOrder
from train.data.splits import Splits, ground_truth_pairs
from train.engine.distributed import SharedFolder, check_same, start_distributed
from train.mining.cross_encoder import cross_encoder_fingerprint
from train.mining.faiss_index import require_faiss
from train.model.random_init import write_scratch
from train.model.siglip import build_model, make_optimizer, resolve_base
from train.optim.fsdp import check_shardable, shard
from train.siglip.job import Job
from train.siglip.stages import check_plan, evaluation_plan


def start_processes(config: JobConfig) -> tuple[Accelerator, Processes]:
    """Start Accelerate, and check that the distributed setup suits this job.

    Raises:
        UserError: as train.engine.distributed.start_distributed, or FAISS is not installed, or train.shard does not go with the rest.
    """

    def check(processes: Processes) -> None:
        check_shardable(config, processes)
        if config.mining is not None and config.mining.index == "faiss":
            require_faiss()

    return start_distributed(config.train, check)


def prepare(config: JobConfig, splits: Splits, accelerator: Accelerator, processes: Processes) -> Job:
    """Build the model and the optimizer. Call on every process.

    Raises:
        UserError: the base, the reranker, the cross-encoder of mining, or the file of data.truth cannot be used, or
            processes were given different files.
        OSError: the weights to begin from cannot be written.
    """
    pool = CaptionPool(splits.train, splits.additional)
    shared = SharedFolder(config.run_folder, processes)
    base = _base(config, splits, processes, shared)
    cross_encoder_sha256 = processes.together(lambda: cross_encoder_fingerprint(config))  # refused now, not at the first mining
    truth, tuned, final_set = processes.together(
        lambda: (ground_truth_pairs(config, splits.train), build_model(config.model, base, config.seed), _prepare_final(config, splits))
    )
    parts = [
        (f"{config.data.source} (split {config.data.train_split}){pool.place}", pool.data_sha256),
        (f"the weights of {config.model.base or 'model.scratch'}", tuned.base_sha256),
        (f"the cross-encoder of mining, {config.cross_encoder_model}", cross_encoder_sha256),
    ]
    check_same(config, parts, processes)
    if config.train.shard:
        shard(tuned.siglip, processes, accelerator.device)
    tuned.siglip.to(accelerator.device)
    return Job(
        config=config,
        accelerator=accelerator,
        processes=processes,
        splits=splits,
        pool=pool,
        truth=truth,
        base=base,
        tuned=tuned,
        optimizer=make_optimizer(tuned, config.train),
        shared=shared,
        final_set=final_set,
        order=epoch_order(config.mining, BatchOrder(splits.train.num_images, config.train.batch_size, config.seed)),
        cross_encoder_sha256=cross_encoder_sha256,
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


def _prepare_final(config: JobConfig, splits: Splits) -> RetrievalSet | None:
    """The split of the final evaluation, with the relevant items `evaluation` asks for.

    Reranker, score cache, additional checkpoints, qrels and comparisons are needed at the very end only; but what is refused must be
    refused now, not after hours of training.
    """
    final, asked = splits.test or splits.val, config.evaluation
    if final is None:
        return None
    scorer_name = load_scorer(config.rerank.model, device="cpu").name if config.rerank is not None else None
    plan = evaluation_plan(config)
    if config.pair_scores_folder is not None:
        ScoreCache(config.pair_scores_folder)
    for path in config.choices or ():
        read_choices(path)
        stage_names(list(plan.checkpoints), scorer_name)
    check_plan(plan, scorer_name)
    for expansion in plan.expansions.values():
        for split in (final, splits.val):
            if split is not None and not isinstance(expansion, Paraphraser):  # paraphrases of a language model take too long to make here
                expansion.of(split)
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    return with_ground_truth(final, protocol=asked.protocol, near_duplicates=asked.near_duplicates, qrels=qrels)

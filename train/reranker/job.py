"""Everything the tuning of a reranker needs before its first step: data, retriever, cross-encoder, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator

from eval.encoder.hub import with_revision
from eval.encoder.identity import file_stamps, identity_sha256
from eval.errors import named
from rerank.reorder.stages import check_top_k
from train.data.caption_pool import CaptionPool
from train.data.caption_texts import caption_lines
from train.data.order import BatchOrder
from train.data.splits import Splits, check_batch_size, ground_truth_pairs, load_splits
from train.engine.distributed import SharedFolder, check_same
from train.engine.run import Run
from train.model.siglip import TunedModel
from train.reranker.model import TunedCrossEncoder, build_cross_encoder, make_cross_encoder_optimizer

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from eval.processes import Processes
    from train.config.reranker import RerankerConfig


@dataclass(kw_only=True)
class RerankerJob(Run):
    """A configured tuning of a reranker on this process.

    Attributes:
        retriever: the SigLIP whose confusions are mined; on the device only while it is used.
        order: the images of each step.
    """

    config: RerankerConfig
    tuned: TunedCrossEncoder
    retriever: TunedModel
    order: BatchOrder

    @property
    def final_set(self) -> RetrievalSet | None:
        """The split of the final report, test or else val; None without either."""
        return self.splits.test or self.splits.val

    def load_base(self) -> TunedCrossEncoder:
        """As `Run`."""
        return build_cross_encoder(self.config.model, self.config.seed)

    def memory_keys(self) -> list[str]:
        """Keys, with values, that make a step need less memory and change nothing that is learnt."""
        return self.smaller_micro_batch(self.config.train.micro_batch_size)

    def describe(self) -> list[str]:
        """What a person should know before the first step, line by line."""
        config, negatives, drop_at = self.config, self.config.negatives, self.config.negatives.drop_matches_at
        num_trained = sum(parameter.numel() for _, parameter in self.tuned.trainable())
        num_all = sum(parameter.numel() for parameter in self.tuned.module.parameters())
        lines = [
            f"reranker  {with_revision(self.base)}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.3f} M of them train "
            f"({config.model.what})",
            f"retriever {with_revision(config.miner)}",
            *self.data_lines(),
            f"pairs     of each image its true caption and up to {negatives.captions_per_image} hard captions, "
            f"{negatives.images_per_caption} hard images; drawn from {negatives.drawn_from}"
            + (f"; none that the cross-encoder calls a match ({drop_at:g})" if drop_at is not None else "")
            + (f"; easy ones up to step {negatives.easy_until_step}" if negatives.easy_until_step else ""),
            *self.size_lines(self.order.num_epochs(config.train.max_steps)),
        ]
        return lines + self.leakage_lines()


def load_reranker_data(config: RerankerConfig) -> Splits:
    """Read the manifest and its splits.

    Raises:
        UserError: with every fault, or a split with fewer images or captions than are reranked.
    """
    splits = load_splits(config)
    if not config.is_open:
        check_reranker_sizes(config, splits)
    return splits


def check_reranker_sizes(config: RerankerConfig, splits: Splits) -> None:
    """Refuse a batch, or candidates, that the splits do not suffice for.

    Raises:
        UserError: naming the first.
    """
    check_batch_size(config, splits.train)
    for split in (splits.val, splits.test):
        if split is not None:
            with named({"top_k": "evaluation.top_k"}):
                check_top_k(split, config.evaluation.top_k)


def check_reranker_models(config: RerankerConfig) -> list[str]:
    """Read the retriever and the cross-encoder with their weights; a line for each.

    Raises:
        UserError: one of the two cannot be used.
    """
    _load_retriever(config)
    build_cross_encoder(config.model, config.seed)
    read = {"retriever": config.miner, "reranker": config.model.base}
    return [f"{what:<9} {with_revision(name)}: all weights are there" for what, name in read.items()]


def _load_retriever(config: RerankerConfig) -> TunedModel:
    with named({"model": "miner"}):
        return TunedModel.load(config.miner)


def prepare_reranker(config: RerankerConfig, splits: Splits, accelerator: Accelerator, processes: Processes) -> RerankerJob:
    """Load the retriever and the cross-encoder, and make the optimizer. Call on every process.

    Raises:
        UserError: one of the two cannot be used, or processes were given different files.
    """
    base_files = file_stamps(config.model.base)
    retriever, tuned, truth = processes.together(
        lambda: (_load_retriever(config), build_cross_encoder(config.model, config.seed), ground_truth_pairs(config, splits.train))
    )
    splits = splits.as_read_by(retriever.inputs)
    pool = CaptionPool(splits.train)
    parts = [
        (f"{config.data.source} (split {config.data.train_split})", pool.data_sha256),
        (f"the cross-encoder {config.model.base}", tuned.base_sha256),
        (f"the retriever {config.miner}", retriever.base_sha256),
        (f"the config, image processor or tokenizer of {config.miner}", identity_sha256(retriever.base_identity)),
    ]
    check_same(config, parts, processes)
    text_lines = caption_lines(splits, pool, retriever.inputs, processes, tuned.inputs.token_ids)
    tuned.module.to(accelerator.device)
    return RerankerJob(
        config=config,
        accelerator=accelerator,
        processes=processes,
        splits=splits,
        pool=pool,
        text_lines=text_lines,
        truth=truth,
        base=config.model.base,
        base_files=base_files,
        tuned=tuned,
        optimizer=make_cross_encoder_optimizer(tuned, config.train),
        shared=SharedFolder(config.run_folder, processes),
        retriever=retriever,
        order=BatchOrder(splits.train.num_images, config.train.batch_size, config.seed),
    )

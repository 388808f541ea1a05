"""Everything the tuning of a reranker needs before its first step: data, retriever, cross-encoder, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator

from eval.encoder.identity import file_stamps, identity_sha256
from rerank.reorder.stages import check_top_k
from train.data.caption_pool import CaptionPool
from train.data.order import BatchOrder
from train.data.splits import Splits, ground_truth_pairs, load_splits
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
            f"reranker  {self.base}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.3f} M of them train ({config.model.what})",
            f"retriever {config.miner}",
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
    for split in (splits.val, splits.test):
        if split is not None:
            check_top_k(split, config.evaluation.top_k)
    return splits


def prepare_reranker(config: RerankerConfig, splits: Splits, accelerator: Accelerator, processes: Processes) -> RerankerJob:
    """Load the retriever and the cross-encoder, and make the optimizer. Call on every process.

    Raises:
        UserError: one of the two cannot be used, or processes were given different files.
    """
    pool = CaptionPool(splits.train)
    base_files = file_stamps(config.model.base)
    retriever, tuned, truth = processes.together(
        lambda: (TunedModel.load(config.miner), build_cross_encoder(config.model, config.seed), ground_truth_pairs(config, splits.train))
    )
    parts = [
        (f"{config.data.source} (split {config.data.train_split})", pool.data_sha256),
        (f"the cross-encoder {config.model.base}", tuned.base_sha256),
        (f"the retriever {config.miner}", retriever.base_sha256),
        (f"the config, image processor or tokenizer of {config.miner}", identity_sha256(retriever.base_identity)),
    ]
    check_same(config, parts, processes)
    tuned.module.to(accelerator.device)
    return RerankerJob(
        config=config,
        accelerator=accelerator,
        processes=processes,
        splits=splits,
        pool=pool,
        truth=truth,
        base=config.model.base,
        base_files=base_files,
        tuned=tuned,
        optimizer=make_cross_encoder_optimizer(tuned, config.train),
        shared=SharedFolder(config.run_folder, processes),
        retriever=retriever,
        order=BatchOrder(splits.train.num_images, config.train.batch_size, config.seed),
    )

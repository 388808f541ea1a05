"""The job of tuning SigLIP: everything is checked and built before its first step, and described in lines."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from eval.choices.choice_set import read_choices
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.encoder import ImageSource
from eval.encoder.hub import with_revision
from eval.encoder.identity import file_stamps, identity_sha256
from eval.errors import UserError, named
from eval.execution import Execution, no_progress
from eval.manifest.columns import CAPTION_NAMES
from eval.process_group import launched_device, precision_fault
from eval.processes import Processes
from rerank.expansions.generated import Paraphraser
from rerank.options import scoring_precision
from rerank.reorder.choices import stage_names
from rerank.reorder.stages import check_top_k
from rerank.scorers.load import check_precision, load_scorer
from rerank.scoring.score_cache import ScoreCache
from train.config.job import JobConfig
from train.data.caption_pool import CaptionPool
from train.data.caption_texts import caption_lines
from train.data.hard_image_order import EpochOrder
from train.data.mined_order import describe_form, epoch_order
from train.data.order import BatchOrder
from train.data.splits import Splits, ground_truth_pairs
from train.engine.distributed import SharedFolder, check_same, start_distributed
from train.engine.run import Run
from train.export.forms import require_forms
from train.export.open_clip_checkpoint import check_open_clip
from train.mining.cross_encoder import cross_encoder_fingerprint
from train.mining.faiss_index import require_faiss
from train.model.frozen_tower import frozen_lines
from train.model.grad_cache import cached_size
from train.model.random_init import write_scratch
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim.fsdp import check_shardable, shard
from train.optim.optimizer import peak_rates
from train.siglip.stages import as_evaluated, check_plan, evaluation_plan


@dataclass(kw_only=True)
class Job(Run):
    """A configured tuning of SigLIP on this process.

    Attributes:
        final_set: the split of the final evaluation, test or else val, with the relevant items `evaluation` asks for; None without either.
        order: the images of each step, before any mining.
        cross_encoder_sha256: fingerprint of the cross-encoder of mining; None without one.
    """

    config: JobConfig
    tuned: TunedModel
    final_set: RetrievalSet | None
    order: EpochOrder
    cross_encoder_sha256: str | None

    def load_base(self) -> TunedModel:
        """As `Run`."""
        return TunedModel.load(self.base, strip_punctuation=self.config.model.strip_punctuation)

    def evaluating(self, on_progress: Callable[[int], Any] = no_progress) -> Execution:
        """How this run measures: as `execution`, in evaluation.precision."""
        return replace(self.execution(on_progress), precision=self.config.evaluation.precision)

    def mining(self, on_progress: Callable[[int], Any] = no_progress) -> Execution:
        """How this run embeds to mine: as `execution`, on a GPU in the precision that it trains in."""
        on_cpu = self.accelerator.device.type == "cpu"
        return replace(self.execution(on_progress), precision="fp32" if on_cpu else self.config.train.precision)

    def evaluated(self) -> list[tuple[str, ImageSource]]:
        """As `Run`, and the pictures of the choice sets, each once whatever parts of it are looked at; of these none is left out."""
        named = super().evaluated()
        for path in self.config.choices or ():
            found = read_choices(path)
            named.append((path, replace(found, images=list({image.key: image for image in found.images}.values()))))
        return named

    def evaluation_reader(self, dataset: ImageSource) -> Callable[[int], Any] | None:
        """As `Run`."""
        return self.reader(dataset)

    def memory_keys(self) -> list[str]:
        """Keys, with values, that make a step need less memory and change nothing that is learnt."""
        keys = [] if self.config.train.shard else self.smaller_micro_batch(self.config.train.micro_batch_size)
        return keys + ([] if self.config.model.gradient_checkpointing else ["model.gradient_checkpointing=true"])

    def describe(self) -> list[str]:
        """What a person should know before the first step, line by line."""
        config, order = self.config, self.order
        num_trained = sum(parameter.numel() for _, parameter in self.tuned.trainable())
        num_all = sum(parameter.numel() for parameter in self.tuned.siglip.parameters())
        share = config.train.batch_size // self.processes.world_size
        lines = [
            f"model     {with_revision(self.base)}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.2f} M of them train",
            *self.data_lines(),
            *self.size_lines(order.num_epochs(config.train.max_steps)),
            *describe_form(config.mining, order),
        ]
        if config.train.optimizer == "muon":
            moved = sum(parameter.numel() for group in self.optimizer.param_groups if group["muon"] for parameter in group["params"])
            lines.append(f"optimizer Muon for {moved / 1e6:.2f} M parameters, the matrices of the towers; AdamW for the rest")
        if config.train.layer_decay is not None:
            peaks = {part: peak for part, peak in peak_rates(self.optimizer).items() if part != "scale_bias"}
            found = "; ".join(f"{part} tower {lowest:.3g} to {highest:.3g}" for part, (lowest, highest) in peaks.items())
            lines.append(f"rates     x {config.train.layer_decay:g} for every layer above, peak from lowest to highest layer: {found}")
        per_image, most_texts = config.train.captions_per_image, config.train.captions_per_image + config.most_mined
        if per_image > 1:
            lines.append(f"captions  up to {per_image} different ones of each image in a step, all positive")
        micro_batch_size = cached_size(config.train.micro_batch_size, share, most_texts)
        if micro_batch_size is not None:
            mined = ", mined ones included" if config.most_mined else ""
            texts = f" and their texts{mined} (up to {share * most_texts})," if most_texts > 1 else " and as many captions"
            lines.append(
                f"memory    cached micro-batches: {share} images{texts} {micro_batch_size} at a time; what trains and does not fit into "
                "one is embedded twice"
            )
        if config.train.shard:
            lines.append(f"memory    weights, gradients and optimizer state in parts, one on each of {self.processes.world_size} processes")
        if config.train.compile:
            lines.append("compile   both towers, before the first step; evaluation and mining run them uncompiled")
        lines += frozen_lines(config)
        lines += [
            f"watch     {watched.config.name}: {watched.dataset.num_images:,} images with {watched.dataset.num_captions:,} captions; "
            f"on a drop: {watched.config.on_drop}"
            for watched in self.splits.watch
        ]
        if self.pool.additional.texts:
            column = f" (column {name!r})" if (name := self.pool.additional.column) in CAPTION_NAMES else ""
            lines.append(f"pool      {len(self.pool.additional.texts):,} additional captions without images{column}, to mine among")
        if self.truth is not None:
            lines.append(f"truth     {len(self.truth):,} additional true pairs, to count false negatives with")
        return lines + self.leakage_lines()


def start_processes(config: JobConfig) -> tuple[Accelerator, Processes]:
    """Start Accelerate, and check that the distributed setup suits this job.

    Raises:
        UserError: as train.engine.distributed.start_distributed, or a package of mining.index or of `export` is not
            installed, or train.shard does not go with the rest, or train.compile finds no compiler.
    """

    def check(processes: Processes) -> None:
        if fault := precision_fault(config.evaluation.precision, PartialState().device):
            raise UserError(f"evaluation.precision {config.evaluation.precision}: {fault}")
        check_shardable(config, processes)
        if config.train.compile:
            from train.model.compiled import require_compiler  # torch's compiler takes a second to import

            require_compiler(PartialState().device)
        require_forms(config.export)
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
    shared = SharedFolder(config.run_folder, processes)
    base = _base(config, splits, processes, shared)
    base_files = file_stamps(base)
    cross_encoder_sha256 = processes.together(lambda: cross_encoder_fingerprint(config))  # refused now, not at the first mining
    truth, tuned = processes.together(lambda: (ground_truth_pairs(config, splits.train), build_model(config.model, base, config.seed)))
    splits = splits.as_read_by(tuned.inputs)
    pool = CaptionPool(splits.train, splits.additional)
    final_set = processes.together(lambda: _prepare_final(config, splits))
    parts = [
        (f"{config.data.source} (split {config.data.train_split}){pool.place}", pool.data_sha256),
        (f"the weights of {config.model.base or 'model.scratch'}", tuned.base_sha256),
        (f"the config, image processor or tokenizer of {config.model.base or 'model.scratch'}", identity_sha256(tuned.base_identity)),
        (f"the cross-encoder of mining, {config.cross_encoder_model}", cross_encoder_sha256),
    ]
    check_same(config, parts, processes)
    if config.export.open_clip:
        check_open_clip(tuned.siglip.config)  # now, not after the training
    tuned.inputs = tuned.inputs.with_tokens_of([pool.captions, *(split.captions for split in splits.all()[1:])], processes)
    text_lines = caption_lines(splits, pool, tuned.inputs, processes)
    if config.train.shard:
        shard(tuned.siglip, processes, accelerator.device)
    tuned.siglip.to(accelerator.device)
    return Job(
        config=config,
        accelerator=accelerator,
        processes=processes,
        splits=splits,
        pool=pool,
        text_lines=text_lines,
        truth=truth,
        base=base,
        base_files=base_files,
        tuned=tuned,
        optimizer=make_optimizer(tuned, config.train),
        shared=shared,
        final_set=final_set,
        order=epoch_order(config.mining, BatchOrder(splits.train.num_images, config.train.batch_size, config.seed)),
        cross_encoder_sha256=cross_encoder_sha256,
    )


def _base(config: JobConfig, splits: Splits, processes: Processes, shared: SharedFolder) -> str:
    """Where this process reads the checkpoint to start from; random weights are written first, by the main process."""
    folder, scratch = Path(config.base), config.model.scratch
    if scratch is None:
        return config.base
    needed = processes.is_main and not folder.is_dir()
    processes.together(lambda: write_scratch(folder, scratch, splits.train, config.seed) if needed else None)
    return str(shared.bring(folder))


def check_models(config: JobConfig) -> list[str]:
    """Read every model of a configuration with its weights; a line for each.

    Raises:
        UserError: one cannot be used, naming its key.
    """
    lines = []
    if config.model.base is not None:
        build_model(config.model, config.model.base)
        lines.append(f"model     {with_revision(config.model.base)}: all weights are there")
    scorer_name = None
    if config.rerank is not None:
        with named({"reranker": "rerank.model"}):
            scorer_name = load_scorer(config.rerank.model, device="cpu").name
        lines.append(f"reranker  {with_revision(config.rerank.model)}: all weights are there, and it scores pairs ({scorer_name})")
    if (model := config.cross_encoder_model) is not None and (config.rerank is None or model != config.rerank.model):
        cross_encoder_fingerprint(config)
        lines.append(f"mining    {with_revision(model)}: all weights are there, and it scores pairs")
    if config.data.test_split or config.data.val_split:
        check_plan(evaluation_plan(config), scorer_name)
    return lines


def _prepare_final(config: JobConfig, splits: Splits) -> RetrievalSet | None:
    """The split of the final evaluation, with the relevant items `evaluation` asks for.

    Reranker, score cache, additional checkpoints, qrels and comparisons are needed at the very end only; but what is refused must be
    refused now, not after hours of training.
    """
    final, asked = splits.test or splits.val, config.evaluation
    if final is None:
        return None
    with named({"reranker": "rerank.model", "precision": "rerank.precision"}):
        if config.rerank is not None:
            check_precision(scoring_precision(config.rerank.precision), launched_device())
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
    if config.rerank is not None and asked.gallery == "different":  # which is smaller than what was checked when the data were read
        for split in (final, splits.val if config.rerank.chooses else None):
            if split is not None:
                check_top_k(as_evaluated(split, asked), config.rerank.top_k)
    return as_evaluated(final, asked, qrels)

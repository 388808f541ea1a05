"""Choice sets scored by a bi-encoder, by a cross-encoder, and by both together.

Shape letters: N (image, caption) pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.choices.choice_set import ChoiceSet
from eval.choices.cosines import cosines
from eval.choices.report import ChoiceReport, choice_report
from eval.choices.texts import choice_text_lines, choice_texts
from eval.encoder.checkpoint import load_encoder, load_inputs
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from rerank import stage_names as names_of
from rerank.scorers.scorer import PairScorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import complete_scores
from rerank.scoring.score_cache import ScoreCache

FUSION_RULE = "z(cosine) + z(match score); z: less the mean and over the standard deviation of all pairs of this set"


def match_scores(
    scorer: PairScorer,
    choices: ChoiceSet,
    *,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
) -> np.ndarray:
    """The cross-encoder's score of every pair of `choices.pairs()`, float64 of shape (N,); each picture encoded and each pair scored once.

    Raises:
        UserError: a score is not finite.
        eval.dataset.images.ImageError: a picture does not decode.
    """
    images_N, captions_N = choices.pairs()
    lists = CandidateLists.of_pairs(images_N, captions_N)
    scores = complete_scores(scorer, choices, lists, cache=cache, execution=execution, progress=execution.processes.is_main)
    return scores.lookup(images_N, captions_N).astype(np.float64)


def standardised(scores_N: np.ndarray) -> np.ndarray:
    """Scores with mean 0 and deviation 1 over the set; equal scores all become 0."""
    centred_N = scores_N - scores_N.mean()
    deviation = scores_N.std()
    return centred_N / deviation if deviation > 0 and np.ptp(scores_N) > 0 else np.zeros_like(scores_N)


def fused(cosines_N: np.ndarray, matches_N: np.ndarray) -> np.ndarray:
    """FUSION_RULE. Cosines spread over hundredths and match logits over tens: added as they are, the cross-encoder would decide alone."""
    return standardised(cosines_N) + standardised(matches_N)


def stage_names(names: Sequence[str], scorer_name: str | None) -> list[str]:
    """Every stage of a measurement: the bi-encoders `names`, the cross-encoder, and its sum with each.

    Raises:
        UserError: two of them have one name.
    """
    stages = [*names, *([scorer_name, *(names_of.reranked(name, scorer_name) for name in names)] if scorer_name is not None else [])]
    if len(set(stages)) < len(stages):
        raise UserError(f"choices: each checkpoint needs a name of its own, and not the reranker's; the stages would be {stages}")
    return stages


def measure_choices(
    choices: ChoiceSet,
    checkpoints: Mapping[str, str],
    scorer: PairScorer | None,
    *,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
    strip_punctuation: bool = False,
) -> ChoiceReport:
    """Measure bi-encoders on a choice set, and with a cross-encoder also that alone (`blip`) and its sum with each (`tuned+blip`).

    Every checkpoint is compared with the first, the cross-encoder with each, and each sum with both its parts. Call on every process.

    Args:
        checkpoints: stage name -> folder or hub id of a SigLIP checkpoint.
        execution: its on_progress is called with each number of rows embedded, and of pairs scored.

    Raises:
        UserError: a name is there twice, a checkpoint cannot be used, a picture does not decode, or a score is not finite.
    """
    stage_names(list(checkpoints), scorer.name if scorer is not None else None)
    stages: dict[str, np.ndarray] = {}
    processes = execution.processes
    inputs_of = processes.together(
        lambda: {name: load_inputs(path, strip_punctuation=strip_punctuation) for name, path in checkpoints.items()}
    )
    texts = choice_texts(choices, inputs_of, processes)
    if processes.is_main:
        for line in choice_text_lines(texts):
            print(f"texts    {line}", flush=True)
    for name, path in checkpoints.items():
        with execution.processes.jointly():
            model, inputs = load_encoder(path, strip_punctuation=strip_punctuation)
            model.to(execution.device)  # type: ignore[arg-type]  # transformers wraps it
        stages[name] = cosines(model, inputs, choices, execution=execution)
    names = list(checkpoints)
    rules = dict.fromkeys(names, "cosine")
    pairs = [(name, names[0]) for name in names[1:]]
    if scorer is not None:
        alone = scorer.name
        stages[alone] = match_scores(scorer, choices, cache=cache, execution=execution)
        rules[alone] = "match score"
        pairs += [(alone, name) for name in names]
        for name in names:
            both = names_of.reranked(name, alone)
            stages[both], rules[both] = fused(stages[name], stages[alone]), FUSION_RULE
            pairs += [(both, name), (both, alone)]
    return choice_report(choices, stages, pairs, rules, texts)

"""Names of an evaluation's stages: made here and nowhere else, and never taken apart; what a stage is made of is passed next to its name.

tuned                 a checkpoint alone
ensemble              several together
tuned+synonyms        with additional views of its queries or images
tuned+nnn             by nearest-neighbour normalisation
tuned+blip            reranked
tuned+blip+sum        reranked by both scores, equal weights
tuned+blip+fused      reranked by both scores, the weight tuned on another split
tuned+blip+adaptive   reranked where the first stage is in doubt
"""

ENSEMBLE = "ensemble"


def expanded(stage: str, expansion: str) -> str:
    """A stage with additional views."""
    return f"{stage}+{expansion}"


def normalised(stage: str) -> str:
    """A checkpoint by nearest-neighbour normalisation."""
    return f"{stage}+nnn"


def reranked(stage: str, scorer_name: str) -> str:
    """The reranked variant of a first stage."""
    return f"{stage}+{scorer_name}"


def summed(reranked_stage: str) -> str:
    """Score interpolation with equal weights."""
    return f"{reranked_stage}+sum"


def fused(reranked_stage: str) -> str:
    """Score interpolation with a tuned weight."""
    return f"{reranked_stage}+fused"


def adaptive(reranked_stage: str) -> str:
    """Adaptive reranking."""
    return f"{reranked_stage}+adaptive"

"""The kinds of image-text matchers that can rerank here: transformers' own by the `model_type` of their config.json, and two others.

A kind more is an entry here and a line in rerank/scorer.py's table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """A family of models of which one class judges pairs.

    Attributes:
        matcher: transformers' class with the matching head, as `architectures` of a config.json names it.
        example: hub id of a checkpoint of that class.
        siblings: other classes of the family, and why each cannot judge a pair.
    """

    matcher: str
    example: str
    siblings: Mapping[str, str] = field(default_factory=dict)


_CAPTIONS = "it writes captions and holds no image-text matching head (itm_head)"
_ANSWERS = "it answers questions and holds no image-text matching head"
_NO_HEAD = "it is the towers alone, without an image-text matching head"
_FILLS = "it fills in masked words and holds no image-text matching head"

KINDS: dict[str, Kind] = {
    "blip": Kind(
        "BlipForImageTextRetrieval",
        "Salesforce/blip-itm-base-coco",
        {
            "BlipModel": "BlipModel has no matching head, and its logits_per_image go through projections whose weights are in no "
            "released checkpoint: they would be random (transformers#28034)",
            "BlipForConditionalGeneration": _CAPTIONS,
            "BlipForQuestionAnswering": f"{_ANSWERS} (itm_head)",
        },
    ),
    "blip-2": Kind(
        "Blip2ForImageTextRetrieval",
        "Salesforce/blip2-itm-vit-g",
        {
            "Blip2ForConditionalGeneration": _CAPTIONS,
            "Blip2Model": f"{_NO_HEAD} (itm_head)",
            "Blip2VisionModelWithProjection": "it embeds images alone",
            "Blip2TextModelWithProjection": "it embeds texts alone",
        },
    ),
    "vilt": Kind(
        "ViltForImageAndTextRetrieval",
        "dandelin/vilt-b32-finetuned-coco",
        {
            "ViltForQuestionAnswering": f"{_ANSWERS} (rank_output)",
            "ViltForMaskedLM": f"{_FILLS} (rank_output)",
            "ViltModel": f"{_NO_HEAD} (rank_output)",
            "ViltForImagesAndTextClassification": "it compares two pictures (NLVR2) and holds no image-text matching head (rank_output)",
        },
    ),
    "bridgetower": Kind(
        "BridgeTowerForImageAndTextRetrieval",
        "BridgeTower/bridgetower-base-itm-mlm",
        {
            "BridgeTowerForMaskedLM": f"{_FILLS} (itm_score)",
            "BridgeTowerModel": f"{_NO_HEAD} (itm_score)",
            "BridgeTowerForContrastiveLearning": "it embeds image and caption to be compared by cosine and holds no image-text matching "
            "head (itm_score)",
        },
    ),
}

ALBEF = "albef"  # a folder that `python -m rerank.convert` wrote; transformers has no class for it
VLM = "vlm"  # a CrossEncoder of sentence-transformers that takes images, whatever the class beneath


def expected() -> str:
    """What a reranker must be, with an example of each kind."""
    kinds = list(KINDS.values())
    others = ", ".join(f"{kind.matcher} ({kind.example})" for kind in kinds[1:])
    return (
        f"Expected an image-text matcher: a {kinds[0].matcher} such as {kinds[0].example}, or one of {others}; or a folder in the format "
        "of one of these; or ALBEF, as python -m rerank.convert writes it; or a CrossEncoder of sentence-transformers that takes images, "
        "such as Qwen/Qwen3-VL-Reranker-2B."
    )

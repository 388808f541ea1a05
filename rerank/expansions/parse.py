"""Query expansion: FILE_OR_METHOD, read and checked before anything is embedded.

What a method makes of a split are further views of its captions or images: texts, or pictures. rerank/combine/expanded_views.py embeds
them.
"""

from collections.abc import Callable, Iterable, Sequence

from eval.errors import UserError
from rerank.expansions.base import Expansion, TextExpansion
from rerank.expansions.crops_and_flips import ImageViewing
from rerank.expansions.further_texts import MOST, CaptionExpansions, FurtherTexts, ImageCaptions
from rerank.expansions.generated import Paraphraser
from rerank.expansions.image_captions import CaptionsColumn, CaptionsFile
from rerank.expansions.image_views import ImageViews
from rerank.expansions.paraphrases import ParaphrasesColumn, ParaphrasesFile
from rerank.expansions.synonyms import Dictionary
from rerank.expansions.templates import Templates
from rerank.expansions.text_file import KINDS
from rerank.expansions.wordnet import WordNet

__all__ = [
    "CaptionExpansions",
    "Expansion",
    "FurtherTexts",
    "ImageCaptions",
    "ImageViews",
    "TextExpansion",
    "kept_columns",
    "parse_expansion",
    "read_expansions",
]

FORMS = f"""FILE ({", ".join(KINDS)} with columns `caption` and `expansion` or `expansions`), column:NAME, templates, templates:FILE,
synonyms:FILE, wordnet, wordnet:DIR, paraphrase:DIR_OR_HUB_ID, crops, flips, captions:FILE, captions-column:NAME""".replace("\n", " ")


def parse_expansion(text: str, *, most: int = MOST, prompt: str | None = None) -> Expansion:
    """The way of expanding that FILE_OR_METHOD names, its files read.

    Args:
        most: further texts of one caption or image, at most.
        prompt: of `paraphrase:`, what the model is asked, with {} where the caption goes; None: what suits the model.

    Raises:
        UserError: it is none, or its files cannot be used: with every fault of a file at once.
    """
    if most < 1:
        raise UserError(f"{text}: expected at least 1 further text of a caption at most; found {most}")
    method, colon, value = text.partition(":")
    if prompt is not None and method != "paraphrase":
        raise UserError(f"{text}: a prompt is for paraphrase:DIR_OR_HUB_ID alone; found {prompt!r:.80}")
    if colon and not value:
        raise UserError(f"{text}: nothing stands after the colon; expected one of {FORMS}")
    if not colon and method in _ALONE:
        return _ALONE[method](most)
    if colon and method == "paraphrase":
        return Paraphraser.read(value, most=most, prompt=prompt)
    if colon and method in _WITH_VALUE:
        return _WITH_VALUE[method](value, most)
    if text.lower().endswith(KINDS):
        return ParaphrasesFile.read(text, most=most)
    raise UserError(f"{text}: expected one of {FORMS}")


def read_expansions(texts: Sequence[str]) -> dict[str, Expansion]:
    """Each FILE_OR_METHOD by the ending of its stages' names; a second of a kind is called NAME-2.

    Raises:
        UserError: one cannot be used.
    """
    found: dict[str, Expansion] = {}
    for expansion in map(parse_expansion, texts):
        same = sum(name.partition("-")[0] == expansion.name for name in found)
        found[f"{expansion.name}-{same + 1}" if same else expansion.name] = expansion
    return found


def kept_columns(expansions: Iterable[Expansion]) -> list[str]:
    """The columns of the manifest that they need: `eval.manifest.manifest.read_manifest(..., keep=...)`."""
    return list(dict.fromkeys(name for expansion in expansions for name in expansion.columns))


_ALONE: dict[str, Callable[[int], Expansion]] = {
    "templates": lambda most: Templates(source="templates", most=most),
    "wordnet": lambda most: WordNet.read(most=most),
    "crops": lambda most: ImageViewing(source="crops", most=most),
    "flips": lambda most: ImageViewing(source="flips", most=most),
}
_WITH_VALUE: dict[str, Callable[[str, int], Expansion]] = {
    "column": lambda name, most: ParaphrasesColumn(source=f"column:{name}", column=name, most=most),
    "templates": lambda path, most: Templates.read(path, most=most),
    "synonyms": lambda path, most: Dictionary.read(path, most=most),
    "wordnet": lambda folder, most: WordNet.read(folder, most=most),
    "captions": lambda path, most: CaptionsFile.read(path, most=most),
    "captions-column": lambda name, most: CaptionsColumn(source=f"captions-column:{name}", column=name, most=most),
}

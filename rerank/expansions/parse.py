"""Query expansion: FILE_OR_METHOD of --expand and data.expand, read and checked before anything is embedded."""

from collections.abc import Callable, Iterable, Sequence

from eval.errors import UserError
from rerank.expansions.base import CropsOrFlips, Expansion
from rerank.expansions.generated import Paraphraser
from rerank.expansions.given_texts import CAPTIONS, PARAPHRASES, ColumnExpansion, FileExpansion
from rerank.expansions.synonyms import Dictionary
from rerank.expansions.templates import Templates
from rerank.expansions.text_file import KINDS
from rerank.expansions.wordnet import WordNet

FORMS = f"""FILE ({", ".join(KINDS)} with columns `caption` and `expansion` or `expansions`), column:NAME, templates, templates:FILE,
synonyms:FILE, wordnet, wordnet:DIR, paraphrase:DIR_OR_HUB_ID, crops, flips, captions:FILE, captions-column:NAME""".replace("\n", " ")


def parse_expansion(text: str) -> Expansion:
    """The way of expanding that FILE_OR_METHOD names, its files read.

    Raises:
        UserError: it is none, or its files cannot be used: with every fault of a file at once.
    """
    method, colon, value = text.partition(":")
    if colon and not value:
        raise UserError(f"{text}: found nothing after the colon; expected one of {FORMS}")
    if not colon and method in _WITHOUT_VALUE:
        return _WITHOUT_VALUE[method]()
    if colon and method in _WITH_VALUE:
        return _WITH_VALUE[method](value)
    if text.lower().endswith(KINDS):
        return FileExpansion.read(PARAPHRASES, text, text)
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


_WITHOUT_VALUE: dict[str, Callable[[], Expansion]] = {
    "templates": lambda: Templates(source="templates"),
    "wordnet": WordNet.read,
    "crops": lambda: CropsOrFlips(name="crops", source="crops"),
    "flips": lambda: CropsOrFlips(name="flips", source="flips"),
}
_WITH_VALUE: dict[str, Callable[[str], Expansion]] = {
    "column": lambda column: ColumnExpansion(name=PARAPHRASES, source=f"column:{column}", columns=[column]),
    "templates": Templates.read,
    "synonyms": Dictionary.read,
    "wordnet": WordNet.read,
    "paraphrase": Paraphraser.read,
    "captions": lambda file: FileExpansion.read(CAPTIONS, f"captions:{file}", file),
    "captions-column": lambda column: ColumnExpansion(name=CAPTIONS, source=f"captions-column:{column}", columns=[column]),
}

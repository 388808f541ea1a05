"""Synonyms out of WordNet (Miller 1995), read by nltk from the data a user has; Debian's package wordnet-base serves.

Of each word the commonest sense counts, and of it the other lemmas, in WordNet's order. The part of speech is the one (noun, adjective,
verb) whose first sense was tagged most often in WordNet's own texts (cntlist.rev); of equals the first of these three.
"""

import importlib.util
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.additional_texts import CaptionExpansions
from rerank.expansions.base import TextExpansion
from rerank.expansions.substitution import Words, substitutions

FILES = ("cntlist.rev", *(f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv")))
EXCEPTIONS = tuple(f"{part}.exc" for part in ("noun", "verb", "adj", "adv"))
DEBIAN = "/usr/share/wordnet"
LONGEST = 3
"""Words that an entry of WordNet has at most, here: "fire hydrant"."""
_PARTS = ("n", "a", "v")
_NUM_LEXICOGRAPHER_FILES = 45  # data.* has their numbers; their names are in `lexnames`, which nltk needs and Debian leaves out
# Words that carry a caption's grammar, place or count: WordNet knows some of them as nouns ("a" is a vitamin, "two" a deuce).
_STOP_WORDS = """
a about above across after against all along also am among an and another any are around as at away back be because been before
behind being below beneath beside between both but by can could did do does doing down each either else every few for from front
had has have having he her here hers him his how i if in inside into is it its just left like many may me more most much must my
near no nor not of off on one two three four five six seven eight nine ten once only onto or other our out outside over own past
right same she should side so some such than that the their them then there these they this those through to together too top
bottom toward towards under until up upon us very was we were what when where which while who whom whose why will with within
without would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, kw_only=True)
class WordNet(TextExpansion):
    """WordNet as a dictionary of synonyms.

    Attributes:
        reader: nltk's, over the user's data.
        known: entry -> its synonyms, as they are looked up.
    """

    name: str = "wordnet"
    reader: Any
    known: dict[Words, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | None = None) -> "WordNet":
        """Open the data in a folder; without one, the first found of $WNSEARCHDIR, /usr/share/wordnet and nltk's own places.

        Raises:
            UserError: nltk is not installed, there is no data, or it lacks files or is damaged.
        """
        source = "wordnet" if folder is None else f"wordnet:{folder}"
        if importlib.util.find_spec("nltk") is None:
            raise UserError(f"{source}: needs nltk, which is not installed here: pip install -c constraints.txt -e '.[wordnet]'")
        place = _found_folder(source) if folder is None else Path(folder)
        if missing := [name for name in (*FILES, *EXCEPTIONS) if not (place / name).is_file()]:
            raise UserError(
                f"{source}: expected WordNet's files in {place}, lacking are {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}. Debian has them: apt-get install wordnet-base"
            )
        try:
            return cls(source=source, reader=_open(place))
        except Exception as error:  # nltk's own, ValueError, AssertionError, StopIteration, ... as the damage
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{source}: WordNet's files in {place} cannot be read ({what}). Install them again") from error

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Each caption of a split with words replaced."""
        proposed = (substitutions(caption, self.synonyms, LONGEST, together_first=False) for caption in dataset.captions)
        return CaptionExpansions.select(dataset, proposed, name=self.name, source=self.source, cut=True)

    def synonyms(self, entry: Words) -> Sequence[str]:
        """Other lemmas of the commonest sense, names with capitals (Canis familiaris) left out.

        Of a regular plural of a noun they are plurals; other inflected words (ran, children) have none.
        """
        if entry not in self.known:
            self.known[entry] = () if len(entry) == 1 and entry[0] in STOP_WORDS else tuple(self._looked_up("_".join(entry)))
        return self.known[entry]

    def _looked_up(self, form: str) -> list[str]:
        senses: list[tuple[int, int, str, str, list[str]]] = []
        for part in _PARTS:
            for base in self.reader._morphy(form, part):  # the form itself first; morphy() would give it alone: "men" is an entry too
                lemmas = self.reader.synsets(base, part)[0].lemmas()
                counts = [lemma.count() for lemma in lemmas if lemma.name().lower() == base]
                senses.append((-max(counts, default=0), len(senses), part, base, [lemma.name() for lemma in lemmas]))
        if not senses:
            return []
        *_, part, base, names = min(senses)
        is_plural = part == "n" and form.endswith("s")
        if base != form and not is_plural:
            return []
        words = [name.replace("_", " ") for name in names if name != base and name.islower()]
        return words if base == form else [plural_of(word) for word in words]


def plural_of(noun: str) -> str:
    """The regular plural.

    >>> [plural_of(word) for word in ("couch", "puppy", "toy", "traffic light")]
    ['couches', 'puppies', 'toys', 'traffic lights']
    """
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou") else noun + "s"


def _found_folder(source: str) -> Path:
    import nltk.data

    own = [Path(folder) / "corpora" / "wordnet" for folder in nltk.data.path]
    places = [Path(os.environ["WNSEARCHDIR"])] if os.environ.get("WNSEARCHDIR") else []
    places += [Path(DEBIAN), *own]
    for place in places:
        if (place / "index.noun").is_file():
            return place
    raise UserError(
        f"{source}: found no WordNet in {', '.join(map(str, places[:4]))}. Debian has it: apt-get install wordnet-base; "
        "or give its folder: wordnet:DIR"
    )


def _open(place: Path) -> Any:
    """nltk's reader, which wants a file that Debian leaves out, and other languages' words, which are not needed."""
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d}\tfile.{number}\t1\n" for number in range(_NUM_LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Other versions' numbers of senses are for other languages' words."""

    folder = str(place.resolve())
    if folder not in nltk.data.path:  # nltk reads nowhere else
        nltk.data.path.append(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was given no words of other languages
        return Reader(folder, None)

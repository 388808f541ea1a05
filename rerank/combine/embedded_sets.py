"""Sets as several checkpoints embed them, each once, with the further views of every expansion."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.errors import reading
from eval.execution import Execution
from eval.processes import Processes
from eval.progress import bar
from eval.search.retrieve import Embedded, embed, progress_bar
from rerank.combine.expanded_views import expanded_captions, expanded_images
from rerank.combine.pooling import Side
from rerank.combine.record import Held
from rerank.combine.views import EnsembleMember, Views
from rerank.expansions.parse import AdditionalTexts, CaptionExpansions, Expansion, ImageViews


@dataclass(frozen=True)
class EmbeddedSet:
    """A set as one checkpoint embeds it.

    Attributes:
        views: of the side that is expanded, by expansion; empty for a checkpoint that is expanded nowhere.
        view_seconds: what embedding them took.
        weight_bytes: of the checkpoint's parameters in memory.
    """

    embedded: Embedded
    views: Mapping[str, Views]
    view_seconds: Mapping[str, float]
    weight_bytes: int


@dataclass
class EmbeddedSets:
    """Embeds sets with several checkpoints; call on every process, with the same arguments in the same order.

    Attributes:
        checkpoints: folder or hub id of each by name, in the order of the report.
        expansions: by the ending of their stages' names.
        expanded: the checkpoints whose sets are expanded or combined: they embed each set once, and what they made of it is kept.
        on_rows: called with each number of rows embedded on this process; what it raises ends the work.
    """

    checkpoints: Mapping[str, str]
    expansions: Mapping[str, Expansion]
    expanded: Sequence[str]
    device: torch.device
    processes: Processes = Processes()
    num_workers: int = 0
    strip_punctuation: bool = False
    on_rows: Callable[[int], Any] = lambda rows: None
    _known: list[RetrievalSet] = field(default_factory=list)
    _further: dict[tuple[int, str], AdditionalTexts | ImageViews] = field(default_factory=dict)
    _making_seconds: dict[tuple[int, str], float] = field(default_factory=dict)
    _read: dict[tuple[int, str], EmbeddedSet] = field(default_factory=dict)

    def prepare(self, datasets: Sequence[RetrievalSet]) -> None:
        """Make every expansion of these sets: what is refused is refused before the work.

        Raises:
            UserError: an expansion cannot be used.
        """
        for dataset in datasets:
            for name in self.expansions:
                self.further(name, dataset)

    def further(self, expansion: str, dataset: RetrievalSet) -> AdditionalTexts | ImageViews:
        """What an expansion makes of a set, in words or pictures."""
        key = self._number(dataset), expansion
        if key not in self._further:
            started = time.perf_counter()
            self._further[key] = self.expansions[expansion].of(dataset, self.processes)
            self._making_seconds[key] = time.perf_counter() - started
        return self._further[key]

    def side(self, expansion: str, dataset: RetrievalSet) -> Side:
        """Whose views an expansion makes."""
        match self.further(expansion, dataset):
            case ImageViews():
                return "images"
            case CaptionExpansions():
                return "captions"
        return "candidates"

    def read(self, name: str, dataset: RetrievalSet) -> EmbeddedSet:
        """A set as a checkpoint embeds it: kept for the next time where the checkpoint is among `expanded`, embedded anew where it is not.

        Raises:
            UserError: the checkpoint, a picture or an expansion cannot be used.
        """
        if name not in self.expanded:  # asked for once: what it embeds should not lie there while others rerank
            return self._embed(name, dataset)
        key = self._number(dataset), name
        if key not in self._read:
            self._read[key] = self._embed(name, dataset)
        return self._read[key]

    def member(self, name: str, dataset: RetrievalSet, expansion: str | None = None) -> EnsembleMember:
        """A checkpoint as a member, with one expansion's further views or none; errors as of :meth:`read`."""
        read = self.read(name, dataset)
        embedded = read.embedded
        images, captions = Views.plain(embedded.images_ID), Views.plain(embedded.captions_CD)
        if expansion is not None and self.side(expansion, dataset) == "captions":
            captions = read.views[expansion]
        elif expansion is not None:
            images = read.views[expansion]
        return EnsembleMember(images, captions, embedded.scale, embedded.bias, embedded.device)

    def held(self, names: Sequence[str], dataset: RetrievalSet) -> Held:
        """What some checkpoints and their vectors of a set take in memory."""
        read = [self.read(name, dataset) for name in names]
        vector_bytes = sum(one.embedded.images_ID.nbytes + one.embedded.captions_CD.nbytes for one in read)
        return Held(sum(one.weight_bytes for one in read), vector_bytes)

    def cost(self, names: Sequence[str], dataset: RetrievalSet, expansion: str | None, search_seconds: float) -> dict[str, Any]:
        """What a stage took: every member embeds every picture and caption, and all further views of one expansion, which are made once.

        `making_seconds` is what making them took: next to nothing for a dictionary, much for a language model.
        """
        read = [self.read(name, dataset) for name in names]
        seconds = {
            "image_seconds": sum(one.embedded.image_seconds for one in read),
            "caption_seconds": sum(one.embedded.caption_seconds for one in read),
            "making_seconds": self._making_seconds[self._number(dataset), expansion] if expansion is not None else 0.0,
            "view_seconds": sum(one.view_seconds[expansion] for one in read) if expansion is not None else 0.0,
            "search_seconds": search_seconds,
        }
        return {"seconds": sum(seconds.values()), **seconds, "pairs_scored": 0}

    def forget(self, dataset: RetrievalSet) -> None:
        """Let go of a set's vectors, of which nothing more is to be made; asked again, they are embedded again."""
        number = self._number(dataset)
        self._read = {key: read for key, read in self._read.items() if key[0] != number}

    def _number(self, dataset: RetrievalSet) -> int:
        for number, known in enumerate(self._known):
            if known is dataset:
                return number
        self._known.append(dataset)
        return len(self._known) - 1

    def _embed(self, name: str, dataset: RetrievalSet) -> EmbeddedSet:
        with self.processes.jointly(), reading():
            model, inputs = load_siglip(self.checkpoints[name], strip_punctuation=self.strip_punctuation)
            model.to(self.device)  # type: ignore[arg-type]  # transformers wraps it
        with progress_bar(f"embedding ({name}, {dataset.split or 'all rows'})", dataset, self.processes) as shown:
            embedded = embed(model, inputs, dataset, execution=self._execution(shown))
        views: dict[str, Views] = {}
        seconds: dict[str, float] = {}
        for expansion in self.expansions if name in self.expanded else ():
            further = self.further(expansion, dataset)
            total = further.num_images if isinstance(further, ImageViews) else len(further.texts)
            started = time.perf_counter()
            with bar(total // self.processes.world_size, f"{name}, {expansion}", "row", show=self.processes.is_main, leave=False) as shown:
                if isinstance(further, ImageViews):
                    made = expanded_images(model, inputs, further, embedded.images_ID, execution=self._execution(shown))
                else:
                    vectors_ND = embedded.captions_CD if isinstance(further, CaptionExpansions) else embedded.images_ID
                    made = expanded_captions(model, inputs, further, vectors_ND, execution=self._execution(shown))
            views[expansion], seconds[expansion] = made, time.perf_counter() - started
        weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return EmbeddedSet(embedded, views, seconds, weight_bytes)

    def _execution(self, shown: Any) -> Execution:
        def advance(rows: int) -> None:
            shown.update(rows)
            self.on_rows(rows)

        return Execution(processes=self.processes, device=self.device, num_workers=self.num_workers, on_progress=advance)

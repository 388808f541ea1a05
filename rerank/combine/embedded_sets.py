"""Sets as several checkpoints embed them, each once, with the additional views of every expansion.

Shape letters: N items of a side (captions, or images), X additional views, T different texts, D width.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_encoder
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs
from eval.errors import reading
from eval.execution import ONE_PROCESS, Execution
from eval.progress import bar
from eval.search.retrieve import Embedded, embed, progress_bar
from rerank.combine.pooling import Side
from rerank.combine.views import EnsembleMember, Views
from rerank.expansions.additional_texts import AdditionalTexts, CaptionExpansions
from rerank.expansions.base import Expansion
from rerank.expansions.image_views import ImageViews


@dataclass(frozen=True)
class EmbeddedSet:
    """A set as one checkpoint embeds it.

    Attributes:
        views: of the side that is expanded, by expansion; empty for a checkpoint that is expanded nowhere.
        view_seconds: what embedding them took.
        weight_bytes: of the checkpoint's parameters in memory.
        other: the same with the captions of the other gallery; None where that is not measured.
    """

    embedded: Embedded
    views: Mapping[str, Views]
    view_seconds: Mapping[str, float]
    weight_bytes: int
    other: Embedded | None = None


@dataclass(kw_only=True)
class EmbeddedSets:
    """Embeds sets with several checkpoints; call on every process, with the same arguments in the same order.

    Attributes:
        checkpoints: folder or hub id of each by name, in the order of the report.
        expansions: by the ending of their stages' names.
        reused: the checkpoints whose vectors are needed more than once: they embed each set once, and their vectors stay in memory.
        execution: its on_progress is called with each number of rows embedded.
        galleries: sets that are measured with their other gallery too (eval/dataset/different_texts.py), and that.
        bank: the reference queries of a normalised stage, which have no additional views; None: there are none.
    """

    checkpoints: Mapping[str, str]
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    reused: Sequence[str] = ()
    execution: Execution = ONE_PROCESS
    strip_punctuation: bool = False
    galleries: Mapping[RetrievalSet, RetrievalSet] = field(default_factory=dict)
    bank: RetrievalSet | None = None
    _additional: dict[tuple[RetrievalSet, str], AdditionalTexts | ImageViews] = field(default_factory=dict)
    _making_seconds: dict[tuple[RetrievalSet, str], float] = field(default_factory=dict)
    _read: dict[tuple[RetrievalSet, str], EmbeddedSet] = field(default_factory=dict)

    def additional(self, expansion: str, dataset: RetrievalSet) -> AdditionalTexts | ImageViews:
        """What an expansion makes of a set, in words or pictures.

        Raises:
            UserError: the expansion cannot be used.
        """
        key = dataset, expansion
        if key not in self._additional:
            started = time.perf_counter()
            self._additional[key] = self.expansions[expansion].of(dataset, self.execution.processes)
            self._making_seconds[key] = time.perf_counter() - started
        return self._additional[key]

    def side(self, expansion: str, dataset: RetrievalSet) -> Side:
        """Whose views an expansion makes."""
        additional = self.additional(expansion, dataset)
        return "images" if isinstance(additional, ImageViews) else "captions" if isinstance(additional, CaptionExpansions) else "candidates"

    def read(self, name: str, dataset: RetrievalSet) -> EmbeddedSet:
        """A set as a checkpoint embeds it; stays in memory where the checkpoint is among `reused`, and is embedded anew where it is not.

        Raises:
            UserError: the checkpoint, a picture or an expansion cannot be used.
        """
        if name not in self.reused:  # asked for once: its vectors should not take memory while others rerank
            return self._embed(name, dataset)
        if (dataset, name) not in self._read:
            self._read[dataset, name] = self._embed(name, dataset)
        return self._read[dataset, name]

    def member(self, name: str, dataset: RetrievalSet, expansion: str | None = None) -> EnsembleMember:
        """A checkpoint as a member, with one expansion's additional views or none; errors as of :meth:`read`."""
        read = self.read(name, dataset)
        embedded = read.embedded
        images, captions = Views.plain(embedded.images_ID), Views.plain(embedded.captions_CD)
        if expansion is not None and self.side(expansion, dataset) == "captions":
            captions = read.views[expansion]
        elif expansion is not None:
            images = read.views[expansion]
        return EnsembleMember(images, captions, embedded.scale, embedded.bias, embedded.device)

    def footprint(self, names: Sequence[str], dataset: RetrievalSet) -> dict[str, int]:
        """What the weights of some checkpoints and their vectors of a set take in memory, as report.json has it."""
        read = [self.read(name, dataset) for name in names]
        vector_bytes = sum(one.embedded.images_ID.nbytes + one.embedded.captions_CD.nbytes for one in read)
        return {"weight_bytes": sum(one.weight_bytes for one in read), "vector_bytes": vector_bytes}

    def cost(self, names: Sequence[str], dataset: RetrievalSet, expansion: str | None, search_seconds: float) -> dict[str, Any]:
        """What a stage took: every member embeds every picture and caption, and all additional views of one expansion, which are made once.

        `making_seconds` is what making them took: next to nothing for a dictionary, much for a language model.
        """
        read = [self.read(name, dataset) for name in names]
        seconds = {
            "image_seconds": sum(one.embedded.image_seconds for one in read),
            "caption_seconds": sum(one.embedded.caption_seconds for one in read),
            "making_seconds": self._making_seconds[dataset, expansion] if expansion is not None else 0.0,
            "view_seconds": sum(one.view_seconds[expansion] for one in read) if expansion is not None else 0.0,
            "search_seconds": search_seconds,
        }
        return {"seconds": sum(seconds.values()), **seconds, "pairs_scored": 0}

    def forget(self, dataset: RetrievalSet) -> None:
        """Free a set's vectors; asked for again, they are embedded again."""
        self._read = {key: read for key, read in self._read.items() if key[0] is not dataset}

    def _embed(self, name: str, dataset: RetrievalSet) -> EmbeddedSet:
        run = self.execution
        with run.processes.jointly(), reading():
            model, inputs = load_encoder(self.checkpoints[name], strip_punctuation=self.strip_punctuation)
            model.to(run.device)  # type: ignore[arg-type]  # transformers wraps it
        with progress_bar(f"embedding ({name}, {dataset.split or 'all rows'})", dataset, run.processes) as shown:
            embedded = embed(model, inputs, dataset, execution=self._reporting(shown), cached=True)
        views: dict[str, Views] = {}
        seconds: dict[str, float] = {}
        for expansion in self.expansions if name in self.reused and dataset is not self.bank else ():
            additional = self.additional(expansion, dataset)
            total = additional.num_images if isinstance(additional, ImageViews) else len(additional.texts)
            started = time.perf_counter()
            with bar(total // run.processes.world_size, f"{name}, {expansion}", "row", show=run.processes.is_main, leave=False) as shown:
                own_ND = embedded.captions_CD if isinstance(additional, CaptionExpansions) else embedded.images_ID
                views[expansion] = embed_views(model, inputs, additional, own_ND, execution=self._reporting(shown))
            seconds[expansion] = time.perf_counter() - started
        weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        other = None
        if dataset in self.galleries:
            captions_CD = captions_of_other_gallery(model, inputs, dataset, self.galleries[dataset], embedded.captions_CD, execution=run)
            other = replace(embedded, captions_CD=captions_CD)
        return EmbeddedSet(embedded, views, seconds, weight_bytes, other)

    def _reporting(self, shown: Any) -> Execution:
        """This execution, with a progress bar that hears of it too."""

        def advance(rows: int) -> None:
            shown.update(rows)
            self.execution.on_progress(rows)

        return replace(self.execution, on_progress=advance)


def captions_of_other_gallery(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    other: RetrievalSet,
    captions_CD: np.ndarray,
    *,
    execution: Execution = ONE_PROCESS,
) -> np.ndarray:
    """Unit embeddings of the captions of the other gallery; a text that is embedded already is not embedded again.

    Args:
        captions_CD: of the data set's captions.

    Raises:
        NotFinite: an embedding is not finite.
    """
    if other.kept_captions is not None:
        return captions_CD[other.kept_captions]
    row = {text: number for number, text in enumerate(dataset.captions)}
    new = list(dict.fromkeys(text for text in other.captions if text not in row))  # the same but for case, punctuation, ...
    row |= {text: len(captions_CD) + number for number, text in enumerate(new)}
    vectors_ND = np.concatenate([captions_CD, embed_captions(model, inputs, new, execution=execution)]) if new else captions_CD
    return vectors_ND[[row[text] for text in other.captions]]


def embed_views(
    model: SiglipModel,
    inputs: SiglipInputs,
    additional: AdditionalTexts | ImageViews,
    vectors_ND: np.ndarray,
    *,
    execution: Execution = ONE_PROCESS,
) -> Views:
    """A side with additional views: captions or images with additional texts, or images with crops or flips.

    Args:
        vectors_ND: of the items themselves, float32 unit vectors.

    Raises:
        UserError: a picture cannot be decoded, or an embedding is not finite.
    """
    if isinstance(additional, ImageViews):
        return Views(vectors_ND, embed_images(model, inputs, additional, names=additional.names, execution=execution), additional.offsets)
    place = {text: number for number, text in enumerate(dict.fromkeys(additional.texts))}  # one text of many items is embedded once
    if not place:
        return Views.plain(vectors_ND)
    vectors_TD = embed_captions(model, inputs, list(place), execution=execution)
    return Views(vectors_ND, vectors_TD[[place[text] for text in additional.texts]], additional.offsets)

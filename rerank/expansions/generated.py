"""Paraphrases that a local language model writes: a seq2seq or causal model of transformers, by beam search."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.encoder import num_blocks
from eval.processes import Processes
from rerank.expansions.additional_texts import MOST, CaptionExpansions, caption_expansions
from rerank.expansions.base import TextExpansion
from rerank.expansions.language_model import LanguageModel, LanguageModelFiles

BLOCK = 8
"""Captions of one batch: a fixed grid, as in eval/encoder/encoder.py, so that any number of processes gets the same answers."""
_LABEL = re.compile(r"^(?:[-*•]\s+|\d+[.)]\s+|(?:paraphrased?|caption|answer|rewritten)(?: caption)?\s*:\s*)", re.IGNORECASE)
_QUOTES = "\"'“”‘’`"


@dataclass(frozen=True, kw_only=True)
class Paraphraser(TextExpansion):
    """A language model that writes each caption in other words, on the GPU where there is one."""

    name: ClassVar[str] = "paraphrases"
    files: LanguageModelFiles

    @classmethod
    def read(cls, model: str) -> "Paraphraser":
        """Read the files that come before the weights.

        Raises:
            UserError: it is no such model or cannot be read.
        """
        source = f"paraphrase:{model}"
        return cls(source=source, files=LanguageModelFiles.read(model, source))

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Paraphrases of each caption of a split; those of a caption that occurs twice are written once.

        Raises:
            UserError: the weights cannot be used.
        """
        captions = list(dict.fromkeys(dataset.captions))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = processes.together(lambda: self.files.load(device))
        answers = dict(zip(captions, self._answers(model, captions, processes), strict=True))
        return caption_expansions(dataset, (answers[caption] for caption in dataset.captions), name=self.name, source=self.source)

    def _answers(self, model: LanguageModel, captions: Sequence[str], processes: Processes) -> list[list[str]]:
        """The model's texts for each caption, cleaned; each process writes those of its share of the blocks."""
        own: list[list[list[str]]] = []
        blocks = num_blocks(len(captions), BLOCK)
        for block in processes.share_of(blocks):
            prompts = [self.files.prompted(caption) for caption in captions[block * BLOCK : (block + 1) * BLOCK]]
            prompts += [prompts[0]] * (BLOCK - len(prompts))  # a full batch each time: arithmetic may depend on its size
            own.append([[cleaned(text) for text in texts] for texts in model.write_again(prompts, MOST)])
        parts = [json.loads(part.tobytes()) for part in processes.gather(np.frombuffer(json.dumps(own).encode(), dtype=np.uint8))]
        in_order = [parts[block % len(parts)][block // len(parts)] for block in range(blocks)]
        return [texts for block in in_order for texts in block][: len(captions)]


def cleaned(text: str) -> str:
    r"""An answer's first line with words, without quotes around it, a list marker or a label before it, and doubled blanks.

    >>> cleaned('\n1. "A hound  runs."\nHope this helps!'), cleaned("Caption: a hound")
    ('A hound runs.', 'a hound')
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = _LABEL.sub("", " ".join(line.split()))
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line.encode("utf-8", "replace").decode()

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
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.base import TextExpansion
from rerank.expansions.further_texts import MOST, CaptionExpansions, caption_expansions
from rerank.expansions.language_model import LanguageModel, LanguageModelFiles

BLOCK = 8
"""Captions that are asked about at once: a fixed grid, as in eval/encoder/encoder.py, so that any number of processes gets the same
answers."""
_LABEL = re.compile(r"^(?:[-*•]\s+|\d+[.)]\s+|(?:paraphrased?|caption|answer|rewritten)(?: caption)?\s*:\s*)", re.IGNORECASE)
_QUOTES = "\"'“”‘’`"


@dataclass(frozen=True, kw_only=True)
class Paraphraser(TextExpansion):
    """A language model that is asked for each caption in other words.

    Attributes:
        prompt: what it is asked, with {} where the caption goes.
        device: where it runs.
    """

    name: ClassVar[str] = "paraphrases"
    files: LanguageModelFiles
    prompt: str
    device: torch.device

    @classmethod
    def read(cls, model: str, *, most: int = MOST, prompt: str | None = None, device: torch.device | None = None) -> "Paraphraser":
        """Read what stands before the weights.

        Args:
            prompt: with one {}; None: "paraphrase: {}" for a seq2seq model, a request in words for a causal one (language_model.py).
            device: None: the GPU where there is one.

        Raises:
            UserError: it is no such model or cannot be read, or the prompt has no place for the caption.
        """
        source = f"paraphrase:{model}"
        if prompt is not None and prompt.count("{}") != 1:
            raise UserError(f"{source}: expected a prompt with exactly one {{}}, where the caption goes; found {prompt!r:.80}")
        files = LanguageModelFiles.read(model, f"{source}")
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(source=source, most=most, files=files, prompt=prompt or files.default_prompt, device=device)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Paraphrases of each caption of a split; a caption that stands there twice is asked about once.

        Raises:
            UserError: the weights cannot be used.
        """
        captions = list(dict.fromkeys(dataset.captions))
        model = processes.together(lambda: self.files.load(self.device))
        answers = dict(zip(captions, self._answers(model, captions, processes), strict=True))
        said = (answers[caption] for caption in dataset.captions)
        return caption_expansions(dataset, said, name=self.name, source=self.source, most=self.most)

    def _answers(self, model: LanguageModel, captions: Sequence[str], processes: Processes) -> list[list[str]]:
        """Of each caption what the model says, cleaned; each process asks about its share of the blocks."""
        own: list[list[list[str]]] = []
        blocks = num_blocks(len(captions), BLOCK)
        for block in processes.share_of(blocks):
            prompts = [self.files.prompted(self.prompt, caption) for caption in captions[block * BLOCK : (block + 1) * BLOCK]]
            prompts += [prompts[0]] * (BLOCK - len(prompts))  # a full batch each time: arithmetic may depend on its size
            said = model.write_again(prompts, self.most)
            own.append([[cleaned(text) for text in texts] for texts in said])
        parts = [json.loads(part.tobytes()) for part in processes.gather(np.frombuffer(json.dumps(own).encode(), dtype=np.uint8))]
        in_order = [parts[block % len(parts)][block // len(parts)] for block in range(blocks)]
        return [texts for block in in_order for texts in block][: len(captions)]


def cleaned(text: str) -> str:
    r"""An answer's first line with words, without quotes around it, marks of a list or a label before it, and doubled blanks.

    >>> cleaned('\n1. "A hound  runs."\nHope this helps!'), cleaned("Caption: a hound")
    ('A hound runs.', 'a hound')
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = _LABEL.sub("", " ".join(line.split()))
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line.encode("utf-8", "replace").decode()

"""What a checkpoint's tokenizer makes of the captions of a choice set: where it cannot tell the true one from a false one, no score can."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from eval.captions import caption_hash
from eval.choices.choice_set import ChoiceSet
from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from eval.report.texts import text_record, token_lines


def choice_texts(choices: ChoiceSet, inputs: Mapping[str, SiglipInputs], processes: Processes = Processes()) -> list[dict[str, Any]]:
    """The record of each checkpoint, as choices.json has them; call on every process.

    Beside what eval/report/texts.py counts: `num_equal_examples`, in which another caption has the tokens of the true one.
    """
    hash_C = np.array([caption_hash(caption) for caption in choices.captions], dtype=np.int64)
    found = []
    for stage, read in inputs.items():
        tokens = CaptionTokens.of(read, choices.captions, processes)
        (figures,) = text_record(choices.captions, hash_C, {stage: tokens})["tokens"]
        keys = [tokens.key_C[list(example.captions)].tolist() for example in choices.examples]
        num_equal = sum(key[0] in key[1:] for key in keys)
        found.append({**figures, "num_equal_examples": num_equal, "num_examples": len(choices.examples)})
    return found


def choice_text_lines(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences on what there is to know, each with its stage; none where all captions are read whole and told apart."""
    lines = []
    for record in records:
        (stage,) = record["stages"]
        lines += [f"{stage}: {line}" for line in token_lines(record)]
        if number := record["num_equal_examples"]:
            lines.append(
                f"{stage}: {number:,} of {record['num_examples']:,} examples have a true and a false caption of equal tokens: "
                "equal scores, which count as wrong"
            )
    return lines

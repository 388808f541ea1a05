"""Paraphrases that a local language model writes: a seq2seq or causal model of transformers, by beam search, the same each time.

Shape letters: B captions of a block, L tokens, R texts of a caption.
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.encoder import num_blocks
from eval.encoder.hub import model_folder
from eval.encoder.model_files import check_model_files, in_words
from eval.errors import UserError, named
from eval.processes import Processes
from rerank.expansions.additional_texts import MOST, CaptionExpansions
from rerank.expansions.base import TextExpansion
from rerank.scorers.checkpoint import complete_weights

SEQ2SEQ_PROMPT = "paraphrase: {}"
CAUSAL_PROMPT = "Caption: {}\nThe same caption in other words:"
CHAT_PROMPT = "Write this caption of a photo again in other words, in one sentence, adding nothing and leaving nothing out. Caption: {}"
MAX_NEW_TOKENS = 48
MAX_PROMPT_TOKENS = 256
_LEAST_PROMPT_TOKENS = 16
BLOCK = 8
"""Captions of one batch: a fixed grid, as in eval/encoder/encoder.py, so that any number of processes gets the same answers."""
_LABEL = re.compile(r"^(?:[-*•]\s+|\d+[.)]\s+|(?:paraphrased?|caption|answer|rewritten)(?: caption)?\s*:\s*)", re.IGNORECASE)
_QUOTES = "\"'“”‘’`"


@dataclass(frozen=True, kw_only=True)
class Paraphraser(TextExpansion):
    """A language model that writes each caption in other words, on the GPU where there is one.

    Attributes:
        model: its folder or hub id.
        is_seq2seq: whether it is an encoder-decoder, or a causal model that continues the prompt.
        max_prompt_tokens: how long a prompt may be.
    """

    name: str = "paraphrases"
    model: str
    config: Any
    tokenizer: Any
    is_seq2seq: bool
    max_prompt_tokens: int

    @classmethod
    def read(cls, model: str) -> "Paraphraser":
        """Config and tokenizer of a folder or hub id; no code of its own is run.

        Raises:
            UserError: they cannot be read, or it is no seq2seq and no causal language model.
        """
        asked = f"paraphrase:{model}"
        with named({"model": asked}):
            check_model_files(model)
            folder = model_folder(model)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            is_seq2seq = _is_seq2seq(model, asked, config)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except UserError:
            raise
        except Exception as error:  # its class depends on the file and the damage
            raise UserError(
                f"{asked}: the config or tokenizer of {model!r} could not be read: {in_words(error)}. Expected a folder or hub id with "
                "config.json, model.safetensors and the tokenizer's files"
            ) from error
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise UserError(f"{asked}: the tokenizer of {model!r} has neither eos_token nor pad_token; name one in its files")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if len(tokenizer) > config.get_text_config().vocab_size:
            raise UserError(
                f"{asked}: the tokenizer of {model!r} has {len(tokenizer)} tokens, the model {config.get_text_config().vocab_size}: "
                "these are files of different models"
            )
        return cls(
            source=asked,
            model=model,
            config=config,
            tokenizer=tokenizer,
            is_seq2seq=is_seq2seq,
            max_prompt_tokens=_max_prompt_tokens(model, asked, config, is_seq2seq),
        )

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Paraphrases of each caption of a split; those of a caption that occurs twice are written once.

        Raises:
            UserError: the weights cannot be used.
        """
        captions = list(dict.fromkeys(dataset.captions))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = processes.together(lambda: self.load(device))
        answers = dict(zip(captions, self._answers(network, captions, processes), strict=True))
        return CaptionExpansions.select(dataset, (answers[caption] for caption in dataset.captions), name=self.name, source=self.source)

    def _answers(self, network: Any, captions: Sequence[str], processes: Processes) -> list[list[str]]:
        """The model's texts for each caption, cleaned; each process writes those of its share of the blocks."""
        own: list[list[list[str]]] = []
        blocks = num_blocks(len(captions), BLOCK)
        for block in processes.share_of(blocks):
            prompts = [self.prompted(caption) for caption in captions[block * BLOCK : (block + 1) * BLOCK]]
            prompts += [prompts[0]] * (BLOCK - len(prompts))  # a full batch each time: arithmetic may depend on its size
            own.append([[cleaned(text) for text in texts] for texts in self.write_again(network, prompts, MOST)])
        parts = [json.loads(part.tobytes()) for part in processes.gather(np.frombuffer(json.dumps(own).encode(), dtype=np.uint8))]
        in_order = [parts[block % len(parts)][block // len(parts)] for block in range(blocks)]
        return [texts for block in in_order for texts in block][: len(captions)]

    @property
    def prompt(self) -> str:
        """The prompt for such a model, with {} where the caption goes."""
        if self.is_seq2seq:
            return SEQ2SEQ_PROMPT
        return CHAT_PROMPT if self.tokenizer.chat_template else CAUSAL_PROMPT

    def prompted(self, caption: str) -> str:
        """The model's input: the prompt with the caption, within the model's own chat template where it has one."""
        text = self.prompt.replace("{}", caption)
        if self.is_seq2seq or not self.tokenizer.chat_template:
            return text
        turns = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)

    def load(self, device: torch.device) -> Any:
        """The model with its weights, float32, all read from the files.

        Raises:
            UserError: they cannot be read, are missing, or not finite.
        """
        model_class = AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM
        purpose, example = ("paraphrasing", "humarin/chatgpt_paraphraser_on_T5_base") if self.is_seq2seq else ("chat", "Qwen/Qwen3-0.6B")
        with named({"model": self.source}):
            return complete_weights(self.model, model_class, self.config, example, setting="model", purpose=purpose).to(device)

    def write_again(self, network: Any, prompts: Sequence[str], number: int) -> list[list[str]]:
        """`number` texts for each prompt, the most probable first, not cleaned: by beam search, without sampling.

        The prompts make one batch, padded to the longest: in another batch the same prompt may get another answer.
        """
        tokenizer, is_seq2seq = self.tokenizer, self.is_seq2seq
        encoded_BL = tokenizer(
            list(prompts),
            padding=True,
            padding_side="right" if is_seq2seq else "left",
            truncation=True,
            max_length=self.max_prompt_tokens,
            add_special_tokens=is_seq2seq or not tokenizer.chat_template,  # a chat template writes them itself
            return_tensors="pt",
        ).to(network.device)
        with torch.no_grad():
            ids = network.generate(
                input_ids=encoded_BL["input_ids"],
                attention_mask=encoded_BL["attention_mask"],
                generation_config=self._beams(network, number),
            )
        if not is_seq2seq:
            ids = ids[:, encoded_BL["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [texts[start : start + number] for start in range(0, len(texts), number)]

    def _beams(self, network: Any, number: int) -> Any:
        """The checkpoint's own settings but for sampling, the number of texts and their length."""
        settings = copy.deepcopy(network.generation_config)
        settings.update(
            num_beams=number,
            num_return_sequences=number,
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            num_beam_groups=None,
            max_length=None,
            min_length=None,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        if settings.eos_token_id is None:
            settings.eos_token_id = self.tokenizer.eos_token_id
        return settings


def _is_seq2seq(model: str, asked: str, config: Any) -> bool:
    seq2seq, causal = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(config.model_type),
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type),
    )
    known = {name for name in (seq2seq, causal) if name is not None}
    architectures = list(config.architectures or known)
    if not known & set(architectures):
        raise UserError(
            f"{asked}: {model!r} is a {', '.join(architectures) or config.model_type}; expected a seq2seq model (T5, BART, ...) or a "
            "causal language model (Llama, Qwen, ...) that writes text"
        )
    return seq2seq in architectures


def _max_prompt_tokens(model: str, asked: str, config: Any, is_seq2seq: bool) -> int:
    """A causal model's position table holds prompt and answer; a seq2seq model has a table for each."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return MAX_PROMPT_TOKENS
    room = positions if is_seq2seq else positions - MAX_NEW_TOKENS
    if room < _LEAST_PROMPT_TOKENS or positions < MAX_NEW_TOKENS:
        raise UserError(
            f"{asked}: {model!r} holds {positions} tokens at most; expected room for a prompt and for an answer of {MAX_NEW_TOKENS} tokens"
        )
    return min(MAX_PROMPT_TOKENS, room)


def cleaned(text: str) -> str:
    r"""An answer's first line with words, without quotes around it, a list marker or a label before it, and doubled blanks.

    >>> cleaned('\n1. "A hound  runs."\nHope this helps!'), cleaned("Caption: a hound")
    ('A hound runs.', 'a hound')
    """
    line = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
    line = _LABEL.sub("", " ".join(line.split()))
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line.encode("utf-8", "replace").decode()

"""A language model that writes texts in other words: a seq2seq or causal model of transformers, by beam search, the same each time.

Shape letters: B captions of a block, L tokens, R texts of a caption.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from eval.errors import UserError
from rerank.scorers.checkpoint import complete_weights, in_words

SEQ2SEQ_PROMPT = "paraphrase: {}"
CAUSAL_PROMPT = "Caption: {}\nThe same caption in other words:"
CHAT_PROMPT = "Write this caption of a photo again in other words, in one sentence, adding nothing and leaving nothing out. Caption: {}"
MAX_NEW_TOKENS = 48
MAX_PROMPT_TOKENS = 256
_LEAST_PROMPT_TOKENS = 16


@dataclass(frozen=True)
class LanguageModelFiles:
    """The files of a language model that are read before its weights.

    Attributes:
        model: its folder or hub id.
        asked: how it was asked for, for messages.
        is_seq2seq: whether it is an encoder-decoder, or a causal model that continues the prompt.
        max_prompt_tokens: how long a prompt may be.
    """

    model: str
    asked: str
    config: Any
    tokenizer: Any
    is_seq2seq: bool
    max_prompt_tokens: int

    @classmethod
    def read(cls, model: str, asked: str) -> "LanguageModelFiles":
        """Config and tokenizer of a folder or hub id; no code of its own is run.

        Raises:
            UserError: they cannot be read, or it is no seq2seq and no causal language model.
        """
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            is_seq2seq = _is_seq2seq(model, asked, config)
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
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
        return cls(model, asked, config, tokenizer, is_seq2seq, _max_prompt_tokens(model, asked, config, is_seq2seq))

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

    def load(self, device: torch.device) -> "LanguageModel":
        """With its weights, float32, all read from the files.

        Raises:
            UserError: they cannot be read, are missing, or not finite.
        """
        model_class = AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM
        purpose, example = ("paraphrasing", "humarin/chatgpt_paraphraser_on_T5_base") if self.is_seq2seq else ("chat", "Qwen/Qwen3-0.6B")
        model = complete_weights(self.model, model_class, self.config, example, asked=self.asked, purpose=purpose)
        return LanguageModel(self, model.to(device))


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


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its weights."""

    files: LanguageModelFiles
    model: Any

    def write_again(self, prompts: Sequence[str], number: int) -> list[list[str]]:
        """`number` texts for each prompt, the most probable first, not cleaned: by beam search, without sampling.

        The prompts make one batch, padded to the longest: in another batch the same prompt may get another answer.
        """
        tokenizer, is_seq2seq = self.files.tokenizer, self.files.is_seq2seq
        encoded_BL = tokenizer(
            list(prompts),
            padding=True,
            padding_side="right" if is_seq2seq else "left",
            truncation=True,
            max_length=self.files.max_prompt_tokens,
            add_special_tokens=is_seq2seq or not tokenizer.chat_template,  # a chat template writes them itself
            return_tensors="pt",
        ).to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(
                input_ids=encoded_BL["input_ids"], attention_mask=encoded_BL["attention_mask"], generation_config=self._beams(number)
            )
        if not is_seq2seq:
            ids = ids[:, encoded_BL["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [texts[start : start + number] for start in range(0, len(texts), number)]

    def _beams(self, number: int) -> Any:
        """The checkpoint's own settings but for sampling, the number of texts and their length."""
        settings = copy.deepcopy(self.model.generation_config)
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
            pad_token_id=self.files.tokenizer.pad_token_id,
        )
        if settings.eos_token_id is None:
            settings.eos_token_id = self.files.tokenizer.eos_token_id
        return settings

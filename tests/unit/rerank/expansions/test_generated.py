"""Paraphrases by a language model: what it is asked, how its answers are cleaned, the same each time, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.captions import normalise
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.additional_texts import MOST
from rerank.expansions.generated import BLOCK, CAUSAL_PROMPT, CHAT_PROMPT, MAX_NEW_TOKENS, SEQ2SEQ_PROMPT, Paraphraser, cleaned
from rerank.expansions.parse import parse_expansion
from tests.tiny_blip import write_tiny_blip
from tests.unit.rerank.combine.expansion_set import split_of
from tests.unit.rerank.expansions.tiny_writers import write_tiny_llama, write_tiny_t5

SPLIT = split_of(["a red dog runs", "the cat sits"], *([f"a blue dog {'runs ' * number}"] for number in range(8)), ["a red dog runs"])
TEMPLATE = "{% for m in messages %}the {{ m['content'] }} . {% endfor %}{% if add_generation_prompt %}same {% endif %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("writers")
    return {"t5": write_tiny_t5(folder / "t5"), "llama": write_tiny_llama(folder / "llama")}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_what_is_kept_is_clean_new_and_the_same_each_time(models: dict[str, Path], kind: str) -> None:
    paraphraser = parse_expansion(f"paraphrase:{models[kind]}")
    expansions = paraphraser.of(SPLIT)
    assert expansions.texts and expansions.name == "paraphrases"
    torch.manual_seed(17)  # nothing is drawn
    again = parse_expansion(f"paraphrase:{models[kind]}").of(SPLIT)
    assert again.sha256() == expansions.sha256()
    for caption in range(SPLIT.num_captions):
        keys = [normalise(text) for text in expansions.of(caption)]
        assert len(set(keys)) == len(keys) <= MOST and normalise(SPLIT.captions[caption]) not in keys
    assert not any(mark in text for text in expansions.texts for mark in ("<pad>", "</s>", "\n"))
    assert expansions.of(0) == expansions.of(SPLIT.num_captions - 1)
    assert len(expansions.texts) + sum(expansions.dropped.values()) == MOST * SPLIT.num_captions


def test_the_answers_are_those_of_plain_beam_search(models: dict[str, Path]) -> None:
    paraphraser = Paraphraser.read(str(models["llama"]))
    prompts = [paraphraser.prompted(caption) for caption in ("a red dog runs", "the cat")]
    answers = paraphraser.write_again(paraphraser.load(torch.device("cpu")), prompts, 2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(models["llama"]), AutoTokenizer.from_pretrained(models["llama"])
    for prompt, answer in zip(prompts, answers, strict=True):  # one at a time: no padding
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        plain = model.generate(
            ids, num_beams=2, num_return_sequences=2, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=0, pad_token_id=0
        )
        assert answer == tokenizer.batch_decode(plain[:, ids.shape[1] :], skip_special_tokens=True)


def test_prompts(models: dict[str, Path], tmp_path: Path) -> None:
    t5, llama = (parse_expansion(f"paraphrase:{models[kind]}") for kind in ("t5", "llama"))
    assert isinstance(t5, Paraphraser) and isinstance(llama, Paraphraser)
    assert (t5.prompt, llama.prompt) == (SEQ2SEQ_PROMPT, CAUSAL_PROMPT)
    assert llama.prompted("a dog") == "Caption: a dog\nThe same caption in other words:"
    shutil.copytree(models["llama"], tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    chat = parse_expansion(f"paraphrase:{tmp_path / 'chat'}")
    assert isinstance(chat, Paraphraser) and chat.prompt == CHAT_PROMPT
    assert chat.prompted("a dog") == f"the {CHAT_PROMPT.format('a dog')} . same "


class Both:
    """One of two processes: it gathers what it was given of the other beside its own."""

    def __init__(self, rank: int, other: bytes) -> None:
        self.rank, self.other, self.own = rank, other, b""
        self.is_main = rank == 0

    def share_of(self, num_blocks: int) -> range:
        return Processes(self.rank, 2).share_of(num_blocks)

    def together(self, make):  # type: ignore[no-untyped-def]
        return make()

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        self.own = array.tobytes()
        other = np.frombuffer(self.other or b"[]", dtype=np.uint8)
        return [array, other] if self.rank == 0 else [other, array]


def test_two_processes_say_what_one_says(models: dict[str, Path]) -> None:
    paraphraser = parse_expansion(f"paraphrase:{models['t5']}")
    assert isinstance(paraphraser, Paraphraser)
    captions = list(dict.fromkeys(SPLIT.captions))
    assert len(captions) > BLOCK  # more than a block
    model = paraphraser.load(torch.device("cpu"))
    second = Both(1, json.dumps([[["x"]] * BLOCK]).encode())
    paraphraser._answers(model, captions, second)  # type: ignore[arg-type]
    first = Both(0, second.own)
    assert paraphraser.of(SPLIT, first).sha256() == paraphraser.of(SPLIT).sha256()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a hound runs", "a hound runs"),
        ("\n\n  A  hound\truns.  \nNote: I changed it.", "A hound runs."),
        ('"A hound runs."', "A hound runs."),
        ("- a hound", "a hound"),
        ("2) a hound", "a hound"),
        ("Paraphrased caption: a hound", "a hound"),
        ("2 hounds run", "2 hounds run"),
        ("", ""),
        ("'", "'"),
    ],
)
def test_cleaning(said: str, expected: str) -> None:
    assert cleaned(said) == expected


def test_what_is_no_writer_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    write_tiny_blip(tmp_path / "blip")
    with pytest.raises(UserError, match="is a BlipForImageTextRetrieval; expected a seq2seq model"):
        parse_expansion(f"paraphrase:{tmp_path / 'blip'}")
    write_tiny_llama(tmp_path / "short", positions=40)
    with pytest.raises(UserError, match="holds 40 tokens at most"):
        parse_expansion(f"paraphrase:{tmp_path / 'short'}")
    shutil.copytree(models["t5"], tmp_path / "half")
    path = tmp_path / "half" / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in sorted(tensors) if "block.1" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="paraphrase:.*lacks 1 weights of"):
        parse_expansion(f"paraphrase:{tmp_path / 'half'}").of(SPLIT)
    path.unlink()
    with pytest.raises(UserError, match=r"the weights \(model.safetensors or pytorch_model.bin\) of"):
        parse_expansion(f"paraphrase:{tmp_path / 'half'}").of(SPLIT)

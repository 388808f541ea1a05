"""eval/dataset/token_table.py: the very ids of the tokenizer, whatever happened to the file."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.dataset import token_table
from eval.dataset.picture_warnings import taken
from eval.dataset.token_table import open_table
from eval.encoder.checkpoint import load_inputs
from eval.encoder.inputs import SiglipInputs, _looked_up, _text_keys
from eval.files import cache_folder
from eval.processes import Processes
from tests.siglip2 import write_siglip2

LONG = "a red dog sits on the left of a blue square and a green cat runs above the big circle "
ODD = ["", "</s>", "\u72ac!", "A RED dog!!", LONG + "behind", LONG + "below", "a red dog"]


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "tiny", sentences)


def refuse(monkeypatch: pytest.MonkeyPatch, inputs: SiglipInputs) -> None:
    """From here on the tokenizer is not asked."""

    def asked(*arguments: Any, **named: Any) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(type(inputs.tokenizer), "__call__", asked)


@pytest.mark.parametrize("kind", ["tiny_siglip", "siglip2"])
def test_ids_are_the_tokenizers_own_and_made_once(
    kind: str, request: pytest.FixtureRequest, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = load_inputs(str(request.getfixturevalue(kind)))
    first, second = [*sentences[:10], *ODD], [*ODD[:3], *sentences[10:], "a red dog"]
    asked = [*second[::-1], *first, *first[:5]]
    expected, is_cut = inputs.token_ids(asked), inputs.tokenised(asked)[1]
    known = inputs.with_tokens_of([first, second])
    mixed = ["not in the table", *asked[:4], "nor this"]
    assert torch.equal(known.token_ids(mixed), inputs.token_ids(mixed))
    again = load_inputs(str(request.getfixturevalue(kind))).with_tokens_of([second, first])
    assert len(list(cache_folder("tokens").iterdir())) == 1  # the same texts, whatever their order
    refuse(monkeypatch, inputs)
    for one in (known, again):
        found = one.token_ids(asked)
        assert found.dtype == torch.int64 and torch.equal(found, expected)
        assert np.array_equal(one.tokenised(asked)[1], is_cut)
    assert is_cut.any() and not is_cut.all()


def tokens_of_length(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Three numbers for each text, by hand."""
    return np.array([[len(text), 70_000, 1] for text in texts], dtype=np.int64), np.array([len(text) > 9 for text in texts])


@pytest.mark.parametrize("fault", ["byte", "cut", "longer"])
def test_a_damaged_file_is_made_again(fault: str, tmp_path: Path) -> None:
    texts = [["one", "twenty-two"], ["three"]]
    table = open_table("some", (_text_keys, tokens_of_length), (3, 100_000), texts, folder=tmp_path)
    assert table is not None
    content = table.path.read_bytes()
    assert len(content) == 3 * (16 + 4 * 4) + 32  # 32-bit numbers, for such a vocabulary
    wrong = {"byte": content[:70] + b"\x55" + content[71:], "cut": content[:-8], "longer": content + b"1"}[fault]
    table.path.write_bytes(wrong)
    again = open_table("some", (_text_keys, tokens_of_length), (3, 100_000), texts, folder=tmp_path)
    assert again is not None and again.path.read_bytes() == content
    ids, is_cut, known = _looked_up(again, ["three", "twenty-two", "four"])
    assert ids[:2].tolist() == [[5, 70_000, 1], [10, 70_000, 1]]
    assert (is_cut[:2].tolist(), known.tolist()) == ([False, True], [True, True, False])


def test_another_tokenizer_or_length_or_text_is_another_file_and_old_ones_go(tmp_path: Path) -> None:
    def small(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(text), 2] for text in texts]), np.zeros(len(texts), dtype=bool)

    texts = [["one", "two"]]
    made = [
        open_table("some", (_text_keys, small), (2, 300), texts, folder=tmp_path),
        open_table("other", (_text_keys, small), (2, 300), texts, folder=tmp_path),
        open_table("some", (_text_keys, small), (2, 301), texts, folder=tmp_path),
        open_table("some", (_text_keys, small), (2, 300), [["one", "three"]], folder=tmp_path),
    ]
    paths = [table.path for table in made if table is not None]
    assert len(set(paths)) == 4 and paths[0].stat().st_size == 2 * (16 + 3 * 2) + 32
    month_ago = time.time() - 31 * 24 * 3600
    for path in paths[:2]:
        os.utime(path, (month_ago, month_ago))
    assert open_table("some", (_text_keys, small), (2, 300), texts, folder=tmp_path) is not None  # it is in use again
    assert open_table("new", (_text_keys, small), (2, 300), texts, folder=tmp_path) is not None
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert open_table("some", (_text_keys, small), (2, 300), [[]], folder=tmp_path) is None


def test_without_a_folder_texts_are_tokenised_each_time_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with taken() as noted:
        assert open_table("some", (_text_keys, tokens_of_length), (3, 300), [["one"]], folder=tmp_path / "file" / "tokens") is None
    assert noted == [("", f"{tmp_path / 'file' / 'tokens'}: token ids cannot be held there, and are made whenever they are needed")]


def test_an_old_file_that_cannot_be_removed_does_not_keep_a_table_from_being_made(tmp_path: Path) -> None:
    """A folder of that name, one that is gone before it is looked at, and what a killed writer left."""
    (tmp_path / "a.tokens").mkdir()
    (tmp_path / "b.tokens").symlink_to(tmp_path / "gone")
    old = tmp_path / "c.tokens"
    old.write_bytes(b"old")
    leftover = tmp_path / f".d.tokens.{'0' * 40}.tmp"
    leftover.write_bytes(b"half")
    for path in (tmp_path / "a.tokens", old, leftover):
        os.utime(path, (1e9, 1e9))
    table = open_table("some", (_text_keys, tokens_of_length), (3, 300), [["one"]], folder=tmp_path)
    assert table is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.tokens", "b.tokens", table.path.name])


def test_two_processes_share_the_work_and_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each told what the other would say: blocks of 2 texts, which they take in turn."""
    monkeypatch.setattr(token_table, "_TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(token_table, "_BLOCKS_AT_ONCE", 1)
    texts = [[f"{number} word" * number for number in range(1, 8)], ["9 word", "1 word"]]
    one = open_table("some", (_text_keys, tokens_of_length), (3, 300), texts, folder=tmp_path / "one")
    assert one is not None
    said: dict[int, list[list[np.ndarray]]] = {0: [], 1: []}

    class Half(Processes):
        def gather_blocks(self, blocks: list[np.ndarray], num_blocks: int) -> list[np.ndarray]:
            said[self.rank].append(blocks)
            turn = len(said[self.rank]) - 1
            parts = [said[0][turn], said[1][turn]]
            return [parts[number % 2][number // 2] for number in range(num_blocks)]

        def gather(self, array: np.ndarray) -> list[np.ndarray]:
            return [array, array]

        def barrier(self) -> None:
            pass

    monkeypatch.setenv("LOCAL_RANK", "0")
    parts = [[texts[0][:2], texts[0][4:6], texts[1]], [texts[0][2:4], texts[0][6:]]]
    said[1] = [[_text_keys(part) for part in parts[1]]]
    order = np.unique(_text_keys(texts[0] + texts[1])[:, 0], return_index=True)[1]
    every = [(texts[0] + texts[1])[place] for place in order]
    for first in range(0, len(every), 4):
        ids, is_cut = tokens_of_length(every[first + 2 : first + 4])
        said[1].append([np.concatenate([ids, is_cut[:, None]], axis=1).astype(np.uint16)] if len(every) > first + 2 else [])
    two = open_table("some", (_text_keys, tokens_of_length), (3, 300), texts, Half(0, 2), folder=tmp_path / "two")
    assert two is not None and two.path.read_bytes() == one.path.read_bytes() and two.path.name == one.path.name

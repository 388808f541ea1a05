"""What a tokenizer makes of captions: cut, unknown, equal; against the padded rows that the text tower reads."""

from pathlib import Path

import numpy as np
import pytest

from eval.encoder.caption_tokens import CaptionTokens, of_equal_tokens, token_key
from eval.encoder.checkpoint import load_inputs
from eval.processes import Processes
from tests.siglip2 import write_siglip2

LONG = "a red dog sits on the left of a blue square and a green cat runs above the big circle "


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "tiny", sentences)


def test_cut_unknown_and_equal_by_hand(tiny_siglip: Path) -> None:
    captions = ["a red dog", LONG + "behind", LONG + "below", "\u72ac", "a \u72ac", "A red dog!", "!!!", "\u732b"]
    found = CaptionTokens.of(load_inputs(str(tiny_siglip)), captions)
    assert found.num_tokens == 16
    assert found.is_cut_C.tolist() == [False, True, True, False, False, False, False, False]
    assert found.is_unknown_C.tolist() == [False, False, False, True, False, False, True, True]
    assert found.key_C[1] == found.key_C[2] and found.key_C[3] == found.key_C[7] and found.key_C[0] == found.key_C[5]
    assert len(set(found.key_C.tolist())) == 5
    # By text, 0 and 5 are one (so the rule of equal text knows them); 1 and 2, 3 and 7 are different texts of the same tokens.
    hash_C = np.array([0, 1, 2, 3, 4, 0, 6, 7])
    assert of_equal_tokens(found.key_C, hash_C).tolist() == [False, True, True, True, False, False, False, True]


def test_byte_fallback_knows_every_character_and_keeps_marks(siglip2: Path) -> None:
    found = CaptionTokens.of(load_inputs(str(siglip2)), ["\u72ac", "1.5 l", "15 l", " "])
    assert found.is_unknown_C.tolist() == [False, False, False, True] and len(set(found.key_C.tolist())) == 4
    stripped = CaptionTokens.of(load_inputs(str(siglip2), strip_punctuation=True), ["1.5 l", "15 l"])
    assert stripped.key_C[0] == stripped.key_C[1]


@pytest.mark.parametrize("kind", ["tiny_siglip", "siglip2"])
def test_keys_are_equal_exactly_where_the_padded_rows_are(kind: str, request: pytest.FixtureRequest, sentences: list[str]) -> None:
    inputs = load_inputs(str(request.getfixturevalue(kind)))
    captions = [*sentences, *(text.upper() for text in sentences[:5]), *(LONG + text for text in sentences[:5]), "", "</s>", "\u72ac!"] * 4
    rows = [tuple(ids) for ids in inputs.token_ids(captions).tolist()]
    found = CaptionTokens.of(inputs, captions)
    numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    keys = {key: number for number, key in enumerate(dict.fromkeys(found.key_C.tolist()))}
    assert [numbers[row] for row in rows] == [keys[key] for key in found.key_C.tolist()]


def test_no_captions_and_the_key_of_ids() -> None:
    assert token_key([1, 2]) == token_key((1, 2)) != token_key([2, 1])
    assert of_equal_tokens(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


def test_processes_share_the_work_and_get_the_same(tiny_siglip: Path, sentences: list[str]) -> None:
    """Two processes, one after the other: each reads every second block of 1,024, and the blocks come together in order."""
    inputs, captions, read = load_inputs(str(tiny_siglip)), [*sentences, LONG, "\u72ac"] * 9, dict[int, list[np.ndarray]]()

    class OneOfTwo(Processes):
        def gather_blocks(self, blocks: list[np.ndarray], num_blocks: int) -> list[np.ndarray]:
            read[self.rank] = blocks
            return [read[number % 2][number // 2] for number in range(num_blocks)] if len(read) == 2 else blocks

    CaptionTokens.of(inputs, captions, OneOfTwo(1, 2))
    shared, alone = CaptionTokens.of(inputs, captions, OneOfTwo(0, 2)), CaptionTokens.of(inputs, captions)
    assert [len(blocks) for blocks in (read[0], read[1])] == [2, 1]
    for field in ("key_C", "is_cut_C", "is_unknown_C"):
        np.testing.assert_array_equal(getattr(shared, field), getattr(alone, field))
    assert alone.is_cut_C.sum() == alone.is_unknown_C.sum() == 9

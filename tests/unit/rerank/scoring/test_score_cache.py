"""The folder of kept scores: found again by content, shared by writers at once, and whole when the disk is full."""

import argparse
import hashlib
import os
import resource
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from eval.errors import UserError, WriteError
from eval.processes import Processes
from rerank.options import add_pair_scores, asked_store
from rerank.scoring import cache_file as pair_segments
from rerank.scoring.cache_file import RECORD, checksums, digest_words
from rerank.scoring.score_cache import KeptScores, PairStore, pair_words


def words_of(kind: str, *numbers: int) -> np.ndarray:
    return np.array([digest_words(hashlib.sha256(f"{kind} {number}".encode()).digest()) for number in numbers]).reshape(-1, 2)


def keep(kept: KeptScores, image: int, scores: dict[int, float]) -> None:
    kept.append(words_of("image", image)[0], words_of("caption", *scores), np.array(list(scores.values()), dtype=np.float32))


def found(kept: KeptScores, *pairs: tuple[int, int]) -> list[float | None]:
    """The score of each (image, caption), None where it is not known."""
    images, captions = zip(*pairs, strict=True)
    is_known, scores = kept.find(pair_words(words_of("image", *images), words_of("caption", *captions)))
    return [float(score) if known else None for known, score in zip(is_known, scores, strict=True)]


def test_what_was_kept_is_found_by_the_next_and_by_the_same_scorer_alone(tmp_path: Path) -> None:
    store = PairStore(tmp_path / "not" / "there")
    keep(store.of("one"), 1, {10: 0.5, 11: -3.25})
    keep(store.of("one"), 2, {10: 7.0})
    keep(store.of("two"), 1, {10: 99.0})
    after = PairStore(tmp_path / "not" / "there")
    pairs = ((1, 10), (1, 11), (2, 10), (2, 11), (10, 1), (3, 3))
    assert found(after.of("one"), *pairs) == [0.5, -3.25, 7.0, None, None, None]
    assert found(after.of("two"), *pairs) == [99.0, None, None, None, None, None]
    assert found(after.of("three"), *pairs) == [None] * 6
    assert len(list(tmp_path.rglob("*.pairs"))) == 2


def test_looking_makes_no_file_and_what_is_added_is_known_at_once(tmp_path: Path) -> None:
    kept = PairStore(tmp_path).of("one")
    kept.add(pair_words(words_of("image", 1, 2), words_of("caption", 1, 1)), np.array([1.0, 2.0], dtype=np.float32))
    kept.add(pair_words(words_of("image", 2, 0), words_of("caption", 1, 5)), np.array([3.0, 4.0], dtype=np.float32))
    assert found(kept, (1, 1), (2, 1), (0, 5), (0, 1)) == [1.0, 2.0, 4.0, None]  # a pair that is known keeps its score
    kept.sync()
    assert list(tmp_path.iterdir()) == []


def test_a_picture_and_a_caption_with_the_same_content_do_not_trade_places() -> None:
    one, other = words_of("content", 1), words_of("content", 2)
    assert not np.array_equal(pair_words(one, other), pair_words(other, one))
    assert pair_words(one, one).any()


def test_pairs_that_share_half_their_words_are_told_apart(tmp_path: Path) -> None:
    """Sixty-four bits of a hundred and twenty-eight are equal: the score is never another's."""
    kept = PairStore(tmp_path).of("one")
    words = np.array([[5, 1], [5, 2], [6, 1]], dtype=np.uint64)
    kept.add(words, np.array([1.0, 2.0, 3.0], dtype=np.float32))
    is_known, scores = kept.find(words)
    assert scores[is_known].tolist() == np.array([1.0, 2.0, 3.0])[is_known].tolist() and is_known[[0, 2]].all()
    assert not kept.find(np.array([[6, 2], [7, 1], [0, 0]], dtype=np.uint64))[0].any()


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    """Four of them, each a hundred lists, while another reads all the time: nobody ever sees half a list or another score."""
    children = []
    for writer in range(4):
        if (pid := os.fork()) == 0:
            try:
                write_all(PairStore(tmp_path).of("one"), writer)
            finally:
                os._exit(0)
        children.append(pid)
    alive = set(children)
    while alive:
        alive -= {pid for pid in alive if os.waitpid(pid, os.WNOHANG)[0]}
        check_all(KeptScores(tmp_path / "one"))
    kept = KeptScores(tmp_path / "one")
    assert len(kept) == check_all(kept) == 4 * sum(image % 7 + 1 for image in range(100)) and kept.num_damaged == 0


def write_all(kept: KeptScores, writer: int) -> None:
    for image in range(100):
        keep(kept, 1000 * writer + image, {caption: writer + caption / 8 for caption in range(image % 7 + 1)})


def check_all(kept: KeptScores) -> int:
    """Look at the lists of the first, the middle and the last images; returns the number of pairs kept."""
    for writer in range(4):
        for image in (0, 50, 99):
            scores = found(kept, *[(1000 * writer + image, caption) for caption in range(image % 7 + 1)])
            assert scores in ([writer + caption / 8 for caption in range(image % 7 + 1)], [None] * (image % 7 + 1))
    return len(kept)


def test_a_full_disk_ends_with_what_to_do_and_costs_nothing_that_was_kept(tmp_path: Path) -> None:
    kept = PairStore(tmp_path).of("one")
    keep(kept, 1, {1: 1.0, 2: 2.0})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * RECORD.itemsize + 7, limits[1]))  # the kernel writes a part and then refuses
        for _ in range(2):
            with pytest.raises(
                WriteError, match=rf"{tmp_path}/one: .*(bytes could be written|too large).*Make room.*--no-pair-scores"
            ) as told:
                keep(kept, 2, dict.fromkeys(range(9), 3.0))
            assert told.value.exit_code == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    keep(kept, 3, {1: 5.0})
    after = PairStore(tmp_path).of("one")
    assert found(after, (1, 1), (1, 2), (2, 0), (3, 1)) == [1.0, 2.0, None, 5.0] and after.num_damaged == 0


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/under.*--pair-scores FOLDER, --no-pair-scores; in a job rerank.pair_scores"):
        PairStore(tmp_path / "file" / "under")
    (tmp_path / "one" / "a.pairs").mkdir(parents=True)
    with pytest.raises(UserError, match="could not read"):
        PairStore(tmp_path).of("one")


def test_damage_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(PairStore(tmp_path).of("one"), 1, {1: 1.0, 2: 2.0})
    keep(PairStore(tmp_path).of("one"), 2, {1: 3.0})
    assert capsys.readouterr().err == ""
    (path,) = [path for path in tmp_path.rglob("*.pairs") if path.stat().st_size == 2 * RECORD.itemsize]
    path.write_bytes(path.read_bytes()[:-5])
    said: list[str] = []
    kept = PairStore(tmp_path, said.append).of("one")
    assert kept.num_damaged == 2 and len(kept) == 1 and len(said) == 1
    assert f"2 records in {tmp_path}/one are damaged or cut short" in said[0] and "1 scores are taken" in said[0]
    PairStore(tmp_path).of("one")
    assert said[0] in capsys.readouterr().err


def test_many_scores_are_read_within_forty_bytes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is 20 bytes a record, and while it is read and sorted at no time more than 40 beside what is read at once."""
    monkeypatch.setattr(pair_segments, "_RECORDS_AT_ONCE", 2000)
    num = 200_000
    records = np.zeros(num, dtype=RECORD)
    rng = np.random.default_rng(0)
    records["image"], records["caption"] = rng.integers(2**63, size=(num, 2)), rng.integers(2**63, size=(num, 2))
    records["length"] = 1
    records["checksum"] = checksums(records)
    (tmp_path / "one").mkdir()
    records.tofile(tmp_path / "one" / "a.pairs")
    tracemalloc.start()
    try:
        kept = KeptScores(tmp_path / "one")
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == num
    assert held <= 21 * num
    assert most <= 40 * num + 1000 * 2000


def test_what_a_command_line_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    add_pair_scores(parser)

    def asked(*words: str) -> PairStore | None:
        return asked_store(parser.parse_args(["--output", str(tmp_path / "out"), *words]), Processes())

    for words, folder in (((), "out/pair-scores"), (("--pair-scores", str(tmp_path / "other")), "other")):
        store = asked(*words)
        assert store is not None and store.folder == tmp_path / folder and store.folder.is_dir()
    assert asked("--no-pair-scores") is None
    with pytest.raises(UserError, match="--pair-scores: expected a folder, found an empty name"):
        asked("--pair-scores", "")
    with pytest.raises(SystemExit):
        asked("--no-pair-scores", "--pair-scores", "x")
    assert "not allowed with" in capsys.readouterr().err


def test_one_process_alone_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.pairs").write_bytes(b"not a record")
    asked = argparse.Namespace(output="x", pair_scores=str(tmp_path), no_pair_scores=False)
    for rank, is_said in ((1, False), (0, True)):
        store = asked_store(asked, Processes(rank, 2))
        assert store is not None and store.of("one").num_damaged == 1
        assert ("damaged" in capsys.readouterr().err) == is_said

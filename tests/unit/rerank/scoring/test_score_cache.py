"""The score cache: scores are found again by content, several processes write at once, and damage is named and never believed."""

import argparse
import os
import resource
import signal
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from eval.errors import UserError, WriteError
from eval.processes import Processes
from rerank.asked import asked_store
from rerank.options import add_pair_scores
from rerank.scoring import score_cache
from rerank.scoring.score_cache import DIGEST, ScoreCache, ScoreDatabase, digest


def image_digest(image: int) -> bytes:
    return digest(f"image {image}".encode())


def caption_digests(*captions: int) -> np.ndarray:
    return np.array([digest(f"caption {caption}".encode()) for caption in captions], dtype=DIGEST)


def write(database: ScoreDatabase, image: int, scores: dict[int, float]) -> None:
    database.write(image_digest(image), caption_digests(*scores), np.array(list(scores.values()), dtype=np.float32))


def found(database: ScoreDatabase, *pairs: tuple[int, int]) -> list[float | None]:
    """The score of each (image, caption), None where it is not cached."""
    lists = list(database.read([image_digest(image) for image, _ in pairs]))
    scores = []
    for (_, caption), (captions, values) in zip(pairs, lists, strict=True):
        places = np.flatnonzero(captions == caption_digests(caption))
        scores.append(float(values[places[0]]) if len(places) else None)
    return scores


def opened(folder: Path, log: Callable[[str], object] = lambda text: None) -> ScoreDatabase:
    return ScoreCache(folder, log).database("one")


def test_what_was_written_is_found_by_the_next_run_and_for_the_same_cross_encoder_alone(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "not" / "there")
    write(cache.database("one"), 1, {10: 0.5, 11: -3.25})
    write(cache.database("one"), 2, {10: 7.0})
    write(cache.database("two"), 1, {10: 99.0})
    after = ScoreCache(tmp_path / "not" / "there")
    pairs = ((1, 10), (1, 11), (2, 10), (2, 11), (10, 1), (3, 3))
    assert found(after.database("one"), *pairs) == [0.5, -3.25, 7.0, None, None, None]
    assert found(after.database("two"), *pairs) == [99.0, None, None, None, None, None]
    assert found(after.database("three"), *pairs) == [None] * 6
    assert sorted(path.relative_to(tmp_path / "not" / "there").as_posix() for path in tmp_path.rglob("*.sqlite")) == [
        "one/1.sqlite",
        "two/1.sqlite",
    ]


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Every kind of float32: the smallest, the largest, minus zero, and a thousand at random."""
    noise = np.frombuffer(np.random.default_rng(0).bytes(4000), dtype="<f4")
    scores = np.concatenate([np.array([0.0, -0.0, 1e-45, 3.4028235e38, 1 / 3], dtype=np.float32), noise[np.isfinite(noise)]])
    database = opened(tmp_path)
    database.write(image_digest(1), caption_digests(*range(len(scores))), scores)
    ((captions, values),) = opened(tmp_path).read([image_digest(1)])
    assert values.tobytes() == scores.tobytes() and captions.tobytes() == caption_digests(*range(len(scores))).tobytes()


def test_reading_makes_no_file_and_what_is_written_is_found_at_once(tmp_path: Path) -> None:
    database = opened(tmp_path)
    assert found(database, (1, 1)) == [None] and list(tmp_path.iterdir()) == []
    write(database, 1, {1: 1.0})
    write(database, 1, {2: 2.0, 1: 3.0})
    assert found(database, (1, 1), (1, 2), (2, 1)) == [1.0, 2.0, None]  # of a pair written twice the first


def test_an_image_and_a_caption_with_the_same_content_do_not_trade_places(tmp_path: Path) -> None:
    database, (one, other) = opened(tmp_path), caption_digests(1, 2)
    database.write(bytes(one), np.array([other], dtype=DIGEST), np.ones(1, dtype=np.float32))
    assert [len(captions) for captions, _ in database.read([bytes(one), bytes(other)])] == [1, 0]


def test_digests_that_end_in_zero_bytes_are_whole(tmp_path: Path) -> None:
    """NumPy strips them from single elements; a digest must not become a shorter one."""
    database, captions = opened(tmp_path), [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", bytes(16)]
    database.write(bytes(16), np.array(captions, dtype=DIGEST), np.arange(3, dtype=np.float32))
    ((read, scores),) = database.read([bytes(16)])
    assert read.tobytes() == b"".join(captions) and scores.tolist() == [0.0, 1.0, 2.0]


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    """Four of them, each a hundred lists, while another reads all the time: no process ever sees half a list or another score."""
    children = []
    for writer in range(4):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                write_all(opened(tmp_path), writer)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    alive, codes = set(children), []
    while alive:
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                codes.append(status)
        check_all(opened(tmp_path))
    assert codes == [0] * 4
    said: list[str] = []
    assert check_all(opened(tmp_path, said.append)) == 4 * sum(image % 7 + 1 for image in range(100)) and not said


def write_all(database: ScoreDatabase, writer: int) -> None:
    for image in range(100):
        write(database, 1000 * writer + image, {caption: writer + caption / 8 for caption in range(image % 7 + 1)})


def check_all(database: ScoreDatabase) -> int:
    """Check every list: whole or absent. Returns the number of pairs cached."""
    num = 0
    for writer in range(4):
        for image, (captions, scores) in enumerate(database.read([image_digest(1000 * writer + image) for image in range(100)])):
            if len(captions):
                assert captions.tolist() == caption_digests(*range(image % 7 + 1)).tolist()
                assert scores.tolist() == [writer + caption / 8 for caption in range(image % 7 + 1)]
            num += len(captions)
    return num


def killed_in_a_transaction(path: Path) -> None:
    """A process writes pages of a transaction to the file and is killed before it commits."""
    if (pid := os.fork()) == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 2")  # pages: the rest goes to the file before the commit
        connection.execute("BEGIN IMMEDIATE")
        for image in range(1, 100):
            row = (image_digest(image), bytes(1600), bytes(400), bytes(16))
            connection.execute("INSERT INTO lists VALUES (?, ?, ?, ?)", row)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert path.with_name(path.name + "-journal").stat().st_size > 0


def test_a_kill_in_a_transaction_leaves_nothing_of_it(tmp_path: Path) -> None:
    write(opened(tmp_path), 1, {1: 1.0, 2: 2.0})
    path, said = opened(tmp_path).path, list[str]()
    before = path.read_bytes()
    killed_in_a_transaction(path)
    assert path.stat().st_size > 10 * len(before), "the kill came before anything was in the file"
    after = opened(tmp_path, said.append)
    assert found(after, (1, 1), (1, 2), (2, 0), (99, 0)) == [1.0, 2.0, None, None]
    assert path.read_bytes() == before
    write(after, 2, {0: 5.0})
    assert found(opened(tmp_path, said.append), (1, 2), (2, 0)) == [2.0, 5.0] and not said


def test_a_process_killed_before_its_first_list_leaves_an_empty_cache(tmp_path: Path) -> None:
    """SQLite makes the file before the tables are committed."""
    said: list[str] = []
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "1.sqlite").touch()
    database = opened(tmp_path, said.append)
    assert found(database, (1, 1)) == [None]
    write(database, 1, {1: 1.0})
    assert found(opened(tmp_path, said.append), (1, 1)) == [1.0] and not said


def test_a_full_disk_ends_with_what_to_do_and_costs_nothing_that_was_written(tmp_path: Path) -> None:
    database = opened(tmp_path)
    write(database, 1, {1: 1.0, 2: 2.0})
    size = database.path.stat().st_size
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (100, size - 10, size + 1000):  # the journal does not fit, the file, the list
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            for _ in range(2):
                with pytest.raises(WriteError, match=rf"{tmp_path}/one/1.sqlite: .*(SQLITE_.*).*Make room.*--no-pair-scores") as told:
                    write(database, 2, dict.fromkeys(range(1000), 3.0))
                assert told.value.exit_code == 4
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert found(database, (1, 1), (1, 2), (2, 0)) == [1.0, 2.0, None]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    write(database, 3, {1: 5.0})
    said: list[str] = []
    assert found(opened(tmp_path, said.append), (1, 1), (1, 2), (2, 0), (3, 1)) == [1.0, 2.0, None, 5.0] and not said


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/under.*--pair-scores FOLDER, --no-pair-scores; in a job rerank.pair_scores"):
        ScoreCache(tmp_path / "file" / "under")
    (tmp_path / "one" / "1.sqlite").mkdir(parents=True)
    with pytest.raises(UserError, match="could not read .*one/1.sqlite"):
        opened(tmp_path)


def test_a_folder_without_permission_to_write_is_read(tmp_path: Path) -> None:
    """In a process without root's rights, which may write anywhere."""
    write(opened(tmp_path), 1, {1: 1.0})
    (tmp_path / "one" / "1.sqlite").chmod(0o444)
    for folder in (tmp_path / "one", tmp_path):
        folder.chmod(0o555)
    parents = [folder for folder in tmp_path.parents if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp")]
    modes = [folder.stat().st_mode for folder in parents]
    try:
        for folder in parents:
            folder.chmod(0o755)
        if (pid := os.fork()) == 0:
            code = 1
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                database = opened(tmp_path)
                assert found(database, (1, 1), (2, 1)) == [1.0, None]
                with pytest.raises(WriteError, match="READONLY"):
                    write(database, 2, {1: 2.0})
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        for folder, mode in zip(parents, modes, strict=True):
            folder.chmod(mode)
        (tmp_path / "one").chmod(0o755)
        tmp_path.chmod(0o755)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1.sqlite", "1.sqlite-journal", "one"]


def test_a_lock_that_is_not_released_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_cache, "_LOCK_SECONDS", 0.05)
    database = opened(tmp_path)
    write(database, 1, {1: 1.0})
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"could not read .*SQLITE_BUSY, another process kept its lock for 0.05 s.*file locks"):
            found(database, (1, 1))
        with pytest.raises(UserError, match="SQLITE_BUSY"):
            opened(tmp_path)
        with pytest.raises(WriteError, match=r"could not write .*SQLITE_BUSY"):
            write(database, 2, {1: 2.0})
        other.execute("ROLLBACK")
    write(database, 2, {1: 3.0})
    assert found(database, (1, 1), (2, 1)) == [1.0, 3.0]


LISTS = {1: {1: 1.0, 2: 2.0}, 2: {1: 3.0}, 3: {number: number / 4 for number in range(300)}}
PAIRS = [(image, caption) for image, scores in LISTS.items() for caption in scores]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database of three lists, the last over more than one page."""
    database = opened(tmp_path_factory.mktemp("sound"))
    for image, scores in LISTS.items():
        write(database, image, scores)
    data = database.path.read_bytes()
    assert len(data) >= 4 * 4096
    return data


def check_damaged(folder: Path, data: bytes) -> tuple[list[str], int]:
    """Read a damaged database: each list is right or absent, and the cache works. Returns what was said and the number of lists left."""
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "1.sqlite").write_bytes(data)
    said: list[str] = []
    database = opened(folder, said.append)
    num_left = 0
    for (_, scores), (captions, values) in zip(LISTS.items(), database.read([image_digest(image) for image in LISTS]), strict=True):
        if len(captions):
            num_left += 1
            assert captions.tolist() == caption_digests(*scores).tolist() and values.tolist() == list(scores.values())
    assert num_left == len(LISTS) or said
    write(database, 4, {7: 7.0})
    assert found(opened(folder, said.append), (4, 7)) == [7.0]
    return said, num_left


def test_a_file_cut_anywhere_is_named_and_not_used(tmp_path: Path, sound: bytes) -> None:
    for cut in [*range(1, 130, 13), *range(500, len(sound), 997)]:
        said, num_left = check_damaged(tmp_path / f"{cut}", sound[:cut])
        path = tmp_path / f"{cut}" / "one" / "1.sqlite"
        assert len(said) == 1 and "Delete it when no job uses it" in said[0]
        if cut > len(sound) - 4096:  # the last page, which holds the end of one list: that list is damaged
            assert num_left == 2 and "1 lists" in said[0]
        else:
            assert num_left == 0 and said[0].startswith(f"score cache: {path} is damaged (")
            assert "one/2.sqlite is used in its place" in said[0] and path.read_bytes() == sound[:cut]


@pytest.mark.parametrize("content", [b"\0" * 4096, b"not a database", b"x" * 10_000, b"\0"], ids=["zeros", "text", "noise", "one byte"])
def test_a_file_that_is_no_database_is_named_and_not_used(tmp_path: Path, content: bytes) -> None:
    said, num_left = check_damaged(tmp_path, content)
    assert num_left == 0 and len(said) == 1 and "1.sqlite is damaged (not an SQLite database with a rollback journal)" in said[0]


def test_a_database_of_something_else_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with closing(sqlite3.connect(tmp_path / "other" / "1.sqlite")) as connection:
        connection.execute("CREATE TABLE lists (image BLOB, score REAL)")
    data = (tmp_path / "other" / "1.sqlite").read_bytes()
    said, num_left = check_damaged(tmp_path / "cache", data)
    assert num_left == 0 and len(said) == 1 and "not the tables of a score cache" in said[0]
    assert (tmp_path / "cache" / "one" / "1.sqlite").read_bytes() == data


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x55"], ids=["zeros", "ones", "pattern"])
def test_a_page_that_is_overwritten_gives_no_wrong_score(tmp_path: Path, sound: bytes, fill: bytes) -> None:
    for page in range(len(sound) // 4096):
        said, _ = check_damaged(tmp_path / f"{page}", sound[: 4096 * page] + fill * 4096 + sound[4096 * (page + 1) :])
        assert said, page


def test_any_byte_that_changes_gives_no_wrong_score(tmp_path: Path, sound: bytes) -> None:
    """Every byte of the header, every other one of the table's definition (SQLite quotes it in messages), and each 61st of the rest."""
    definition = range(sound.index(b"CREATE TABLE") - 30, sound.index(b"CREATE TABLE") + 114)
    changes = [(place, 1 << place % 8) for place in (*range(100), *range(100, len(sound), 61))]
    changes += [(place, 0x80) for place in definition[::2]]
    for number, (place, bits) in enumerate(changes):
        changed = bytearray(sound)
        changed[place] ^= bits
        check_damaged(tmp_path / f"{number}", bytes(changed))


def test_a_score_that_changes_costs_its_list_and_no_other(tmp_path: Path, sound: bytes) -> None:
    """SQLite itself does not notice: the checksum does."""
    place = sound.index(np.array([1.0, 2.0], dtype="<f4").tobytes())
    said, num_left = check_damaged(tmp_path, sound[:place] + np.array([1.5, 2.0], dtype="<f4").tobytes() + sound[place + 8 :])
    assert num_left == 2 and len(said) == 1
    assert said[0].startswith(f"score cache: 1 lists in {tmp_path}/one/1.sqlite are damaged; they are skipped, and scored again")


def test_the_file_that_took_a_damaged_ones_place_is_used_when_that_is_deleted(tmp_path: Path, sound: bytes) -> None:
    check_damaged(tmp_path, sound[:5000])
    (tmp_path / "one" / "1.sqlite").unlink()
    said: list[str] = []
    assert found(opened(tmp_path, said.append), (4, 7)) == [7.0] and not said


def test_damage_while_a_job_runs_ends_it_with_what_to_do(tmp_path: Path, sound: bytes) -> None:
    database = opened(tmp_path)
    write(database, 1, {1: 1.0})
    database.path.write_bytes(b"x" * 8192)
    with pytest.raises(UserError, match=r"one/1.sqlite is damaged \(.*NOTADB\)\)\. Delete it when no job uses it"):
        found(database, (1, 1))
    with pytest.raises(WriteError, match=r"one/1.sqlite: .*NOTADB\)\. It is damaged\. Delete it when no job uses it"):
        write(database, 2, {1: 1.0})


def test_files_of_the_former_format_are_named_once_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("a", "b"):
        (tmp_path / "one" / f"{name}.pairs").write_bytes(bytes(96))
    said: list[str] = []
    cache = ScoreCache(tmp_path, said.append)
    for _ in range(2):
        assert found(cache.database("one"), (1, 1)) == [None]
        write(cache.database("one"), 2, {1: 2.0})
    assert said == [f"score cache: {tmp_path}/one/*.pairs are of a former format and are not read. Delete them when no job uses them"]
    cache.database("two")
    assert len(said) == 1


def test_memory_does_not_grow_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once is a few images' lists, of a cache of 4 MB."""
    monkeypatch.setattr(score_cache, "_IMAGES_AT_ONCE", 10)
    database, captions = opened(tmp_path), caption_digests(*range(1000))
    for image in range(200):
        database.write(image_digest(image), captions, np.full(1000, image, dtype=np.float32))
    images = [image_digest(image) for image in range(200)]
    tracemalloc.start()
    try:
        for image, (_, scores) in enumerate(opened(tmp_path).read(images)):
            assert len(scores) == 1000 and scores[0] == image
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert database.path.stat().st_size > 4_000_000 and most < 500_000


def test_what_a_command_line_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    add_pair_scores(parser)

    def asked(*words: str) -> ScoreCache | None:
        return asked_store(parser.parse_args(["--output", str(tmp_path / "out"), *words]), Processes())

    for words, folder in (((), "out/pair-scores"), (("--pair-scores", str(tmp_path / "other")), "other")):
        cache = asked(*words)
        assert cache is not None and cache.folder == tmp_path / folder and cache.folder.is_dir()
    assert asked("--no-pair-scores") is None
    with pytest.raises(UserError, match="--pair-scores: expected a folder, found an empty name"):
        asked("--pair-scores", "")
    with pytest.raises(SystemExit):
        asked("--no-pair-scores", "--pair-scores", "x")
    assert "not allowed with" in capsys.readouterr().err


def test_one_process_alone_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "1.sqlite").write_bytes(b"not a database")
    asked = argparse.Namespace(output="x", pair_scores=str(tmp_path), no_pair_scores=False)
    for rank, is_said in ((1, False), (0, True)):
        cache = asked_store(asked, Processes(rank, 2))
        assert cache is not None and cache.database("one").path.name == "2.sqlite"
        assert ("damaged" in capsys.readouterr().err) == is_said

"""Captions out of text files, tables and manifests."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.manifest.manifest import ManifestError
from rerank.answers.captions import read_captions
from rerank.answers.collection import read_collection


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa red dog\r\n\n  a cat \n a red dog\na\u2028b\x0cc\r   \nNaN, None".encode())
    found = read_captions(str(path))
    assert list(found.texts) == ["a red dog", "a cat", "a\u2028b\x0cc", "NaN, None"]
    assert list(found.ids) == ["1", "3", "5", "7"]
    assert (found.num_blank, found.num_repeated) == (2, 1)


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@given(st.lists(words, max_size=12), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_every_line_is_read_skipped_or_repeated(tmp_path_factory, lines: list[str], end: str, closed: bool) -> None:
    lines = [f"{line} x" if line.strip() else line for line in lines] + ["last x"]
    path = tmp_path_factory.mktemp("lines") / "c.txt"
    path.write_bytes((end.join(lines) + end * closed).encode())
    found = read_captions(str(path))
    wanted = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if wanted and lines[0].startswith("\ufeff"):  # a mark of the file, not of its first caption
        wanted = list(dict.fromkeys([lines[0][1:].strip(), *(line.strip() for line in lines[1:] if line.strip())]))
    assert list(found.texts) == wanted
    assert len(found.texts) + found.num_blank + found.num_repeated == len(lines)
    assert [lines[int(number) - 1].removeprefix("\ufeff" if number == "1" else "").strip() for number in found.ids] == wanted


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0])] + [mark.join(f'"{"" if cell is None else cell}"' for cell in row.values()) for row in rows]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_of_a_table(tmp_path: Path, suffix: str) -> None:
    rows = [{"name": f"k{n}", "title": text} for n, text in enumerate(["a dog", "", "a, cat", "a dog", "NA"])]
    path = write_table(tmp_path / f"t{suffix}", rows)
    found = read_captions(str(path), column="title", id_column="name")
    assert list(found.texts) == ["a dog", "a, cat", "NA"] and list(found.ids) == ["k0", "k2", "k4"]
    assert (found.num_blank, found.num_repeated) == (1, 1)
    numbered = read_captions(str(path), column="title")
    first = 2 if suffix in (".csv", ".tsv") else 1  # a line of the file; in .parquet a row
    assert list(numbered.ids) == [str(first), str(first + 2), str(first + 4)]
    assert list(numbered.notes) == []
    assert list(read_captions(str(path)).notes) == ["captions from column 'title'"]
    other = write_table(tmp_path / f"u{suffix}", [{"name": "k", "words": "a dog"}])
    with pytest.raises(ManifestError, match=r"no column of the names caption, captions, text, title; columns found: \['name', 'words'\]"):
        read_captions(str(other))
    with pytest.raises(ManifestError, match=r"no column 'nome'; .* --caption-id-column NAME"):
        read_captions(str(path), column="title", id_column="nome")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_captions_are_split(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", [{"captions": ["a dog", "a cat"]}, {"captions": ["a dog", "a bird"]}])
    found = read_captions(str(path))
    assert list(zip(found.ids, found.texts, strict=True)) == [("1#0", "a dog"), ("1#1", "a cat"), ("2#1", "a bird")]


def test_captions_come_before_caption_in_each_row_as_in_a_manifest(tmp_path: Path) -> None:
    rows = [{"captions": ["a dog", "a cat"], "caption": "a cow"}, {"caption": "a hen"}, {"captions": None, "caption": "a pig"}]
    found = read_captions(str(write_table(tmp_path / "t.jsonl", rows)))
    assert list(zip(found.ids, found.texts, strict=True)) == [("1#0", "a dog"), ("1#1", "a cat"), ("2", "a hen"), ("3", "a pig")]
    asked = read_captions(str(tmp_path / "t.jsonl"), column="caption")
    assert list(asked.texts) == ["a cow", "a hen", "a pig"]


def test_an_empty_list_is_a_blank_and_words_elsewhere_are_a_fault(tmp_path: Path) -> None:
    rows: list[dict] = [{"captions": []}, {"captions": ["a dog"]}, {"caption": " "}, {"captions": None, "caption": None}]
    found = read_captions(str(write_table(tmp_path / "t.jsonl", rows)))
    assert list(found.texts) == ["a dog"] and found.num_blank == 3
    with pytest.raises(ManifestError, match=r"u\.jsonl:2: no 'captions', but a 'text'; give all captions one name"):
        read_captions(str(write_table(tmp_path / "u.jsonl", [{"captions": ["a dog"]}, {"text": "a cat"}])))
    with_title = read_captions(str(write_table(tmp_path / "v.csv", [{"caption": "a dog", "title": "x"}, {"caption": "", "title": "y"}])))
    assert with_title.num_blank == 1, "a title is no caption where there is a column of captions"


def test_a_list_in_a_csv_cell_is_split_and_a_bracket_in_words_is_not(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("captions\n\"['a dog', 'a cat']\"\n[sic] a bird\n")
    assert list(read_captions(str(path)).texts) == ["a dog", "a cat", "[sic] a bird"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"", "no captions: it is empty"),
        ("c.txt", b"\n \n", "no captions: 2 blank lines"),
        ("c.txt", b"a dog\nb\xe4d\n\xff\n", r"2 x not UTF-8 text(.|\n)*c\.txt:2: .*save the file as UTF-8"),
        ("c.txt", b"a dog\n--- !\n", r"c\.txt:2: nothing is left of '--- !' without blanks, punctuation and invisible"),
        ("c.jsonl", b'{"caption": "a dog"}\n{"caption": 3}\nnope', r"c\.jsonl:3: not a JSON object"),
        ("c.jsonl", b'{"caption": "a dog"}\n{"caption": 3}', r"c\.jsonl:2: expected text, found int"),
        ("c.csv", b"caption\na dog, a cat\n", "2 cells where the header has 1"),
        ("c.parquet", b"PAR1", "cannot be read as parquet"),
        ("c.docx", b"x", r"expected a \.txt, one caption a line, or \.csv.*found \*\.docx"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_captions(str(tmp_path / name))


def test_ids_must_be_there_and_differ(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.jsonl", [{"id": "a", "caption": "x"}, {"id": "a", "caption": "y"}, {"id": None, "caption": "z"}])
    with pytest.raises(
        ManifestError, match=r"2 x id missing or twice(.|\n)*t\.jsonl:2: id 'a' is at .*t\.jsonl:1 too(.|\n)*the id is empty"
    ):
        read_captions(str(path), id_column="id")


def test_columns_of_a_text_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a dog")
    with pytest.raises(UserError, match="a text file has no columns"):
        read_captions(str(tmp_path / "c.txt"), column="caption")


@pytest.fixture
def manifest(tmp_path: Path, noise) -> Path:
    """Two pictures with captions of their own, one of them in two splits."""
    for name in ("b.png", "a.png"):
        noise(1).save(tmp_path / name)
    rows = [
        {"image": "b.png", "title": ["a dog", "a cat"], "split": "test"},
        {"image": "a.png", "title": ["a dog"], "split": "test"},
        {"image": "a.png", "title": ["a bird"], "split": "train"},
    ]
    return write_table(tmp_path / "m.jsonl", rows)


def test_a_manifest_brings_its_own_captions(manifest: Path) -> None:
    found = read_collection(str(manifest), None, caption_column="title")
    assert list(found.image_ids) == ["a.png", "b.png"]
    assert sorted(zip(found.caption_ids, found.captions, strict=True)) == [
        ("a.png#0", "a dog"),
        ("a.png#1", "a bird"),
        ("b.png#1", "a cat"),
    ]
    only = read_collection(str(manifest), None, columns={"captions": "title"}, split="train")
    assert list(only.image_ids) == ["a.png"] and list(only.captions) == ["a bird"]


def test_a_folder_of_pictures_needs_captions_or_has_caption_files(tmp_path: Path, noise) -> None:
    noise(1).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="without --captions FILE each picture's own captions are read.*Give --captions FILE"):
        read_collection(str(tmp_path), None)
    (tmp_path / "a.txt").write_text("a dog\n")
    assert list(read_collection(str(tmp_path), None).captions) == ["a dog"]
    with pytest.raises(UserError, match="--split are for manifests"):
        read_collection(str(tmp_path), str(tmp_path / "a.txt"), split="test")
    with pytest.raises(UserError, match="no such file or folder"):
        read_collection(str(tmp_path / "nothing"), str(tmp_path / "a.txt"))

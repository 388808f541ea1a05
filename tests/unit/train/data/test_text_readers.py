"""Every reader of text, whatever wrote the file: a byte order mark, CRLF, and characters that Python alone takes for the end of a line."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from eval.choices.choice_set import read_choices
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import load_split
from eval.dataset.truth import known_pairs
from eval.errors import UserError
from eval.files import at_home, command_line, encoding_of, read_text
from eval.manifest.manifest import read_manifest
from rerank.answers.captions import read_captions
from rerank.expansions.generated import cleaned
from rerank.expansions.parse import parse_expansion
from train.config.load import load_config
from train.data.caption_pool import read_additional_captions

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]
NO_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def write(path: Path, text: str, encoding: str) -> str:
    path.write_bytes(("\ufeff" + text if encoding == "utf-16-be" else text).encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mark_and_crlf_are_right_at_every_reader(tmp_path: Path, encoding: str) -> None:
    assert read_qrels(write(tmp_path / "q.txt", "a.jpg 0 b.jpg#0 1\r\nc.jpg 0 é.jpg#0 1\r\n", encoding)) == {
        ("a.jpg", "b.jpg#0"),
        ("c.jpg", "é.jpg#0"),
    }
    templates = parse_expansion("templates:" + write(tmp_path / "t.txt", "a photo of {}\r\né {}\r\n", encoding))
    assert templates.templates == ("a photo of {}", "é {}")  # type: ignore[attr-defined]
    words = parse_expansion("synonyms:" + write(tmp_path / "w.txt", "dog: hound\r\ncafé: bar\r\n", encoding))
    assert list(words.entries.values()) == [["hound"], ["bar"]]  # type: ignore[attr-defined]
    assert list(read_captions(write(tmp_path / "c.txt", "a dog\r\nun café\r\n", encoding)).texts) == ["a dog", "un café"]
    pool = read_additional_captions(write(tmp_path / "p.txt", "a dog\r\nun café\r\n", encoding))
    assert (list(pool.texts), pool.lines_A.tolist()) == (["a dog", "un café"], [1, 2])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_line_ends_end_a_line_at_every_reader(tmp_path: Path, end: str) -> None:
    whole = f"a dog{NO_LINE_ENDS}barks"
    text = write(tmp_path / "c.txt", f"{whole}{end}a cat{end}", "utf-8")
    assert list(read_captions(text).texts) == list(read_additional_captions(text).texts) == [whole, "a cat"]
    templates = parse_expansion("templates:" + write(tmp_path / "t.txt", f"a{NO_LINE_ENDS}b {{}}{end}c {{}}{end}", "utf-8"))
    assert templates.templates == (f"a{NO_LINE_ENDS}b {{}}", "c {}")  # type: ignore[attr-defined]
    words = parse_expansion("synonyms:" + write(tmp_path / "w.txt", f"dog: hound{NO_LINE_ENDS}s{end}cat: puss{end}", "utf-8"))
    assert list(words.entries.values()) == [[f"hound{NO_LINE_ENDS}s"], ["puss"]]  # type: ignore[attr-defined]
    assert read_qrels(write(tmp_path / "q.txt", f"a 0 b#0 1{end}c 0\x0cd#0 1{end}", "utf-8")) == {("a", "b#0"), ("c", "d#0")}
    assert cleaned(f"a\u2028dog{end}a cat") == "a dog"


def test_a_mark_that_lies_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"\xff\xfea")
    for read in (read_captions, read_additional_captions, read_qrels, lambda name: parse_expansion(f"templates:{name}")):
        with pytest.raises(UserError, match=r"c\.txt"):
            read(str(path))
    assert encoding_of(path.read_bytes()[:4]) == "utf-16"


def test_a_configuration_with_a_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: demo\r\n")
    assert read_text(path) == "name: demo\n"


@pytest.mark.parametrize(("written", "on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_a_path_composed_otherwise_leads_to_its_file(tmp_path: Path, written: str, on_disk: str) -> None:
    (tmp_path / on_disk).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / on_disk / f"{on_disk}.png")
    path = tmp_path / "m.csv"
    path.write_text(f"image,caption\n{written}/{written}.png,a dog\n{on_disk}/{on_disk}.png,a cat\n", encoding="utf-8")
    (image,) = read_manifest(path).images
    assert (image.id, image.captions) == (f"{on_disk}/{on_disk}.png", ["a dog", "a cat"]), "one file is one image"
    assert image.path == tmp_path / on_disk / f"{on_disk}.png"
    choices = tmp_path / "c.jsonl"
    choices.write_text(f'{{"image": "{written}/{written}.png", "caption": "a", "false_captions": ["b"]}}', encoding="utf-8")
    assert read_choices(choices).images[0].source == image.path


def test_two_files_of_names_composed_in_two_ways_are_two_images(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    path = tmp_path / "m.csv"
    path.write_text(f"image,caption\n{NFC}.png,a dog\n{NFD}.png,a cat\n", encoding="utf-8")
    found = {image.id: image.path for image in read_manifest(path).images}
    assert found == {f"{name}.png": tmp_path / f"{name}.png" for name in (NFC, NFD)}


def test_ids_of_qrels_and_of_additional_captions_may_be_composed_otherwise(tmp_path: Path) -> None:
    for name in ("a", NFD):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image,caption\na.png,a dog\n{NFD}.png,a cat\n", encoding="utf-8")
    dataset = load_split(read_manifest(manifest), None)
    assert known_pairs(dataset, {(f"{NFC}.png", "a.png#0")})[1] == []
    more = tmp_path / "more.csv"
    more.write_text(f"image,caption\n{NFC}.png,a cup\n", encoding="utf-8")
    assert list(parse_expansion(f"captions:{more}").of(dataset).texts) == ["a cup"]  # type: ignore[attr-defined]


def test_a_tilde_is_a_home_folder_in_a_manifest_on_the_command_line_and_in_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    Image.new("RGB", (4, 4)).save(home / "a.png")
    path = tmp_path / "m.csv"
    path.write_text("image,caption\n~/a.png,a dog\n", encoding="utf-8")
    assert read_manifest(path, image_root=home).images[0].id == "a.png"
    paths = ["~/m.csv", "--data=~/m.csv", "data.source=~/m.csv", "synonyms:~/w.txt", "--expand=synonyms:~/w.txt", "--also=b=~/m"]
    given = [*paths, "a~/b", "x"]
    monkeypatch.setattr("sys.argv", ["-m", *given])
    assert command_line() == at_home(given) == [text.replace("~", str(home)) for text in paths] + ["a~/b", "x"]
    config = tmp_path / "c.yaml"
    config.write_text(
        "name: x\nmodel: {base: ~/siglip}\ndata: {source: ~/m.csv, image_root: ~/pictures, expand: ['templates:~/t.txt']}\n"
        "train: {max_steps: 2, batch_size: 2, learning_rate: 1e-4, eval_every_steps: 1, checkpoint_every_steps: 1}\n"
    )
    read = load_config(config, ["data.truth=~/q.txt", "runs_folder=~/runs"])
    found = [read.model.base, read.data.source, read.data.image_root, read.runs_folder, read.data.truth]
    assert found == [str(home / name) for name in ("siglip", "m.csv", "pictures", "runs", "q.txt")]
    assert read.data.expand == [f"templates:{home}/t.txt"]

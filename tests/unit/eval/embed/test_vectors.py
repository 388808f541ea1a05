"""`python -m eval.embed`: what is written is read back with the evaluation's own figures, and docs/vectors.md reads it with FAISS."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eval.embed.__main__ import parse, run
from eval.embed.vectors import ROWS_AT_ONCE, Side, StoredRows, from_stored, read_embedded, to_stored, write_vectors
from eval.encoder.checkpoint import load_siglip
from eval.encoder.embedding_files import InMemoryRows
from eval.errors import UserError
from eval.metrics.evaluate import values_of
from eval.processes import Processes
from eval.search.nnn import gallery_means, rank_corrected
from eval.search.retrieve import embed, find
from tests.nursery import Nursery
from tests.small_job import SmallWorld, load

PAGE = (Path(__file__).parents[4] / "docs" / "vectors.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def words(world: SmallWorld, output: Path, *more: str) -> list[str]:
    common = ["--model", str(world.base), "--data", str(world.manifest), "--output", str(output), "--num-workers", "0"]
    return [*common, *(more if "--split" in more else ["--split", "test", *more])]


def command(world: SmallWorld, output: Path, *more: str) -> Path:
    run(parse(words(world, output, *more)), Processes(), torch.device("cpu"))
    return output


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_float32_gives_the_bits_and_the_figures_of_the_evaluation(small_world: SmallWorld, tmp_path: Path, form: str) -> None:
    folder, data = command(small_world, tmp_path / "out", "--format", form), load(small_world.manifest, "test")
    model, inputs = load_siglip(small_world.base)
    expected, found = embed(model, inputs, data), read_embedded(folder, data)
    assert found.images_ID.tobytes() == expected.images_ID.tobytes() and found.captions_CD.tobytes() == expected.captions_CD.tobytes()
    assert (found.scale, found.bias, found.inputs) == (expected.scale, expected.bias, expected.inputs)
    assert values_of(data, find("model", found, data)) == values_of(data, find("model", expected, data))
    names = {"parquet": [".parquet"], "npy": [".jsonl", ".npy"]}[form]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["vectors.json", *(f"{side}{name}" for side in ("images", "captions") for name in names)]
    )


@pytest.mark.parametrize(("dtype", "within"), [("float16", 5e-4), ("int8", 0.02)])
def test_smaller_ones_are_near(small_world: SmallWorld, tmp_path: Path, dtype: str, within: float) -> None:
    folder, data = command(small_world, tmp_path / "out", "--dtype", dtype), load(small_world.manifest, "test")
    model, inputs = load_siglip(small_world.base)
    expected, found = embed(model, inputs, data), read_embedded(folder, data)
    assert np.abs(found.captions_CD @ found.images_ID.T - expected.captions_CD @ expected.images_ID.T).max() < within
    assert np.linalg.norm(found.images_ID, axis=1) == pytest.approx(1, abs=1e-6)
    vector = pq.read_schema(folder / "images.parquet").field("vector").type
    assert vector == pa.list_({"float16": pa.float16(), "int8": pa.int8()}[dtype], expected.images_ID.shape[1])


def test_the_record_says_what_made_them(small_world: SmallWorld, tmp_path: Path) -> None:
    folder, data = command(small_world, tmp_path / "out", "--dtype", "int8"), load(small_world.manifest, "test")
    record = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    assert (record["dtype"], record["dim"], record["normalised"], record["nnn"]) == ("int8", 32, False, None)
    assert "times 127" in record["stored"] and record["data"]["sha256"] == data.sha256()
    assert {len(record["model"][key]) for key in ("weights_sha256", "identity_sha256")} == {64}
    assert (record["images"]["num_rows"], record["captions"]["num_rows"]) == (data.num_images, data.num_captions)
    table = pq.read_table(folder / "captions.parquet")
    assert table.column_names == record["captions"]["columns"] + ["vector"] == ["id", "image_id", "text", "vector"]
    assert table["id"].to_pylist() == list(data.caption_ids) and table["text"].to_pylist() == list(data.captions)
    assert table["image_id"].to_pylist() == [data.image_ids[image] for image in data.caption_image_C]


def test_without_a_split_all_rows_are_embedded(small_world: SmallWorld, tmp_path: Path) -> None:
    asked = [word for word in words(small_world, tmp_path / "out") if word not in ("--split", "test")]
    run(parse(asked), Processes(), torch.device("cpu"))
    assert pq.read_metadata(tmp_path / "out" / "images.parquet").num_rows == 40 + 14 + 14


def test_vectors_of_other_data_and_damaged_ones_are_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    folder = command(small_world, tmp_path / "out")
    with pytest.raises(UserError, match="the images are not those of .* 'pictures/test-000.png' in place of 'pictures/val-000.png'; embed"):
        read_embedded(folder, load(small_world.manifest, "val"))
    (folder / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as vectors"):
        read_embedded(folder, load(small_world.manifest, "test"))


def test_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    """More rows than a part holds, from any row to any other; the memory of one part at a time."""
    vectors = np.random.default_rng(0).normal(size=(2 * ROWS_AT_ONCE + 77, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sides = {
        side: Side(rows=InMemoryRows(vectors), columns={"id": [str(n) for n in range(len(vectors))]}) for side in ("images", "captions")
    }
    for form in ("parquet", "npy"):
        write_vectors(tmp_path / form, sides, {}, "float32", form, Processes())  # type: ignore[arg-type]
        rows = StoredRows(tmp_path / form, "images", form)  # type: ignore[arg-type]
        for start, stop in (
            (0, len(vectors)),
            (ROWS_AT_ONCE - 1, ROWS_AT_ONCE + 1),
            (ROWS_AT_ONCE, 2 * ROWS_AT_ONCE),
            (8192, 8200),
            (5, 5),
        ):
            assert rows.rows(start, stop).tobytes() == vectors[start:stop].tobytes(), (form, start, stop)


def test_int8_by_hand() -> None:
    stored = to_stored(np.float32([[0.6, -0.8, 0], [0, 0, 0], [1, 0, 0]]), "int8")
    assert stored.tolist() == [[95, -127, 0], [0, 0, 0], [127, 0, 0]]
    assert from_stored(stored)[0] == pytest.approx([95 / np.hypot(95, 127), -127 / np.hypot(95, 127), 0])
    assert from_stored(stored)[1:].tolist() == [[0, 0, 0], [1, 0, 0]]


def test_two_processes_write_what_one_writes(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    more = ["--split", "train", "--nnn-bank", "val", "--nnn-images", "2:0.5"]
    alone = command(small_world, tmp_path / "alone", *more)
    ranks = nursery.start_ranks("eval.embed", words(small_world, tmp_path / "two", *more), 2)
    assert [child.wait() for child in ranks] == [0, 0], ranks[0].output()
    for side in ("images", "captions"):
        assert pq.read_table(tmp_path / "two" / f"{side}.parquet").equals(pq.read_table(alone / f"{side}.parquet")), side


def test_the_page_reads_them_with_faiss_and_corrects_them(small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    command(small_world, tmp_path / "out" / "vectors", "--nnn-bank", "train", "--nnn-images", "8:0.75")
    monkeypatch.chdir(tmp_path)
    reading, faiss, qdrant, lancedb, corrected = SNIPPETS
    for snippet in (qdrant, lancedb):
        compile(snippet, "vectors.md", "exec")
        assert len(snippet.strip().splitlines()) <= 8
    names: dict = {}
    exec(compile(reading + faiss, "vectors.md", "exec"), names)
    model, inputs = load_siglip(small_world.base)
    data, bank = (embed(model, inputs, load(small_world.manifest, split)) for split in ("test", "train"))
    split = load(small_world.manifest, "test")
    ranking = find("model", data, split).rankings["text_to_image"]
    assert names["scores"][0] == pytest.approx(ranking.top_scores_QK[0, :5], abs=1e-5)
    assert names["found"] == [split.image_ids[item] for item in ranking.top_indices_QK[0, :5]]
    exec(compile(corrected, "vectors.md", "exec"), names)
    means = gallery_means(data, bank, "text_to_image", [8])[0]
    expected = rank_corrected(data, split, {"text_to_image": 0.75 * means}, 5)["text_to_image"]
    assert names["scores"] == pytest.approx(expected.top_scores_QK, abs=1e-5)
    record = json.loads(Path("out/vectors/vectors.json").read_text())
    assert record["nnn"]["images"] == {"k": 8, "alpha": 0.75} and record["nnn"]["bank"]["split"] == "train"
    assert record["images"]["columns"] == ["id", "correction"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--nnn-bank", "train"], "give it with one of them, or neither"),
        (["--nnn-images", "8:0.5"], "give it with one of them, or neither"),
        (["--nnn-images", "8:0.5", "--nnn-bank", "test"], "is among what is embedded"),
        (["--nnn-images", "0:0.5", "--nnn-bank", "train"], "expected K:ALPHA"),
    ],
)
def test_a_correction_needs_a_bank_of_another_split(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words(small_world, tmp_path, *more))
    assert ended.value.code == 2 and message in capsys.readouterr().err

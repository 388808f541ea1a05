"""train/export/ and eval/encoder/runtimes.py: an export in every form, each read by its own library and by our evaluation.

open_clip is tried where OPEN_CLIP_PACKAGES names a folder with it, timm and torchvision, or where it is installed.
"""

import copy
import json
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipModel

from benchmarks.exports import RUN, measure, read_with, table, write_pairs
from eval.__main__ import main as evaluate_command
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_encoder, load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.runtimes import RuntimeSiglip, TowerFiles, require_package
from eval.encoder.sealed import is_sealed, verify
from eval.errors import NotFinite, SettingError, UserError
from eval.manifest.run_data import RunData
from rerank.evaluation import EvaluationPlan, evaluate_plan
from tests.small_job import TINY, SmallWorld, load
from train.config.export import ExportConfig
from train.config.load import load_config
from train.config.model import ModelConfig
from train.data.splits import load_data
from train.engine.folder import check_replaceable
from train.export import forms, towers
from train.export.__main__ import main as export_command
from train.export.measure import EXPORTS, exports_lines, measure_forms, measured_forms
from train.export.open_clip_checkpoint import check_open_clip, open_clip_state
from train.model.siglip import TunedModel, build_model
from train.siglip.export import export_model
from train.siglip.job import prepare, start_processes

HAS_OPENVINO = find_spec("openvino") is not None
ALL = ExportConfig(dtypes=["float32", "bfloat16", "float16"], onnx=True, openvino=HAS_OPENVINO, open_clip=True)
TOLERANCE = {"": 1e-6, "_fp16": 3e-3, "_quantized": 0.1}
"""Of an element of a unit vector; this model is tiny, and its weights are noise, which quantization costs most."""


@dataclass(frozen=True)
class Made:
    """A tuned model, its export in every form, and data."""

    tuned: TunedModel
    folder: Path
    dataset: RetrievalSet


@pytest.fixture(scope="module")
def made(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Made:
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    folder = tmp_path_factory.mktemp("run") / "export"
    export_model(tuned, folder, "a card\n", ALL)
    return Made(tuned, folder, load(small_world.manifest, "test"))


def inputs_of(made: Made, tower: str, count: int) -> torch.Tensor:
    """Pixel values, or token ids that end in padding."""
    if tower == "vision_model":
        return torch.randn(count, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(count))
    return made.tuned.inputs.token_ids([*made.dataset.captions, "a"][-count:])


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("*.onnx*"))
    return bool(names) and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_folder_is_whole_and_holds_the_rounded_weights(made: Made, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    whole, halved = (load_file(folder / "model.safetensors") for folder in (made.folder, made.folder / name))
    assert whole.keys() == halved.keys() and all(torch.equal(whole[key].to(dtype), halved[key]) for key in whole)
    for model in (SiglipModel.from_pretrained(made.folder / name), SiglipModel.from_pretrained(made.folder, subfolder=name)):
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    config = json.loads((made.folder / name / "config.json").read_text())
    assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == [name] * 3
    others = {path.name for path in made.folder.iterdir() if path.is_file()} - {"README.md"}
    assert {path.name for path in (made.folder / name).iterdir()} == others
    assert verify(made.folder / name) == "" == verify(made.folder)


def test_a_weight_beyond_float16_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    with torch.no_grad():
        tuned.siglip.text_model.head.bias[0] = 1e5
    with pytest.raises(NotFinite, match=r"1 weight\(s\) are beyond torch.float16, e.g. text_model.head.bias"):
        export_model(tuned, tmp_path / "export", "a card\n", ExportConfig(dtypes=["float16"]))
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("suffix", TOLERANCE)
@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_onnx_towers_give_transformers_outputs_at_any_batch(made: Made, tower: str, suffix: str) -> None:
    session = onnxruntime.InferenceSession(made.folder / "onnx" / f"{tower}{suffix}.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.shape[0]) == ({"vision_model": "pixel_values", "text_model": "input_ids"}[tower], "batch_size")
    assert [(one.name, one.type) for one in session.get_outputs()] == [
        ("last_hidden_state", "tensor(float)"),
        ("pooler_output", "tensor(float)"),
    ]
    model = SiglipModel.from_pretrained(made.folder).eval()
    for count in (1, 3, 8):
        rows = inputs_of(made, tower, count)
        with torch.no_grad():
            expected = getattr(model, tower)(rows)
        states, pooled = session.run(None, {given.name: rows.numpy()})
        assert states.shape == tuple(expected.last_hidden_state.shape)
        unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (pooled, expected.pooler_output.numpy())]
        np.testing.assert_allclose(*unit, atol=TOLERANCE[suffix], rtol=0)
    if suffix != "_quantized":  # which reads the whole batch at once
        np.testing.assert_allclose(session.run(None, {given.name: rows.numpy()[:1]})[1], pooled[:1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_onnx_files_say_how_to_use_them_and_nothing_of_this_machine(made: Made, tower: str) -> None:
    scale, bias = made.tuned.siglip.logit_scale.exp().item(), made.tuned.siglip.logit_bias.item()
    for suffix in TOLERANCE:
        path = made.folder / "onnx" / f"{tower}{suffix}.onnx"
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        assert [one.version for one in proto.opset_import if one.domain == ""] == [18]
        found = {entry.key: entry.value for entry in proto.metadata_props}
        numbers = {key: json.loads(found[key]) for key in ("image_size", "text_length", "pad_token_id", "image_mean", "image_std")}
        assert numbers == {"image_size": 16, "text_length": 12, "pad_token_id": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        assert json.loads(found["rescale_factor"]) == pytest.approx(1 / 255) and found["resample"] == "bicubic"
        assert (json.loads(found["logit_scale"]), json.loads(found["logit_bias"])) == pytest.approx((scale, bias), rel=1e-6)
        assert not [word for word in (b"site-packages", b".py", str(Path.cwd()).encode()) if word in path.read_bytes()]
    sizes = [(made.folder / "onnx" / f"{tower}{suffix}.onnx").stat().st_size for suffix in TOLERANCE]
    assert sizes[0] > max(sizes[1:])


def test_the_same_weights_give_the_same_onnx_bytes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "TOWERS", {"text_model": "input_ids"})
    plain = SiglipModel.from_pretrained(made.folder, attn_implementation="eager").eval()
    towers.write_onnx(plain, made.tuned.inputs, tmp_path / "onnx")
    assert same_files(tmp_path / "onnx", made.folder / "onnx") and is_sealed(tmp_path / "onnx")


def test_weights_beyond_a_protobuf_lie_in_a_file_next_to_it(made: Made, tmp_path: Path) -> None:
    small, large = made.folder / "onnx" / "text_model.onnx", tmp_path / "text_model.onnx"
    towers._save(onnx.load(small), large, {"logit_scale": "1"}, True)
    assert large.stat().st_size < (tmp_path / "text_model.onnx_data").stat().st_size
    halved = onnx.load(large)  # what the other precisions are made of
    towers._save(towers._quantized(large), tmp_path / "text_model_quantized.onnx", {}, False)
    ids = {"input_ids": inputs_of(made, "text_model", 3).numpy()}
    for one, other in ((small, large), (made.folder / "onnx" / "text_model_quantized.onnx", tmp_path / "text_model_quantized.onnx")):
        found = [onnxruntime.InferenceSession(path).run(["pooler_output"], ids)[0] for path in (one, other)]
        np.testing.assert_array_equal(*found)
    assert len(halved.graph.initializer) == len(onnx.load(small).graph.initializer)
    assert not list(tmp_path.glob(".quantized*"))


def forms_to_read() -> list[str]:
    """What `eval --model` reads of the export, by the name of the form."""
    return list(measured_forms(ALL))


@pytest.mark.parametrize("form", forms_to_read())
def test_evaluation_reads_every_form_and_agrees_with_the_record_to_the_digit(made: Made, form: str) -> None:
    model, inputs = load_encoder(made.folder / measured_forms(ALL)[form])
    tolerance = {"bfloat16": 1e-2, "float16": 2e-3, "onnx-float16": 3e-3, "onnx-int8": 0.1}.get(form, 1e-6)
    for embed, items in ((embed_images, made.dataset), (embed_captions, made.dataset.captions)):
        expected = embed(made.tuned.siglip, made.tuned.inputs, items)
        np.testing.assert_allclose(embed(model, inputs, items), expected, atol=tolerance, rtol=0)
    assert model.logit_scale.exp().item() == pytest.approx(made.tuned.siglip.logit_scale.exp().item(), rel=1e-2)


def test_the_records_of_forms_are_what_the_one_evaluation_gives(made: Made) -> None:
    records = measure_forms(ALL, made.folder, made.dataset)
    paths = {name: str(made.folder / path) for name, path in measured_forms(ALL).items()}
    report = evaluate_plan(
        EvaluationPlan(checkpoints=paths, comparisons=tuple((n, "float32") for n in paths if n != "float32")), made.dataset
    )
    assert report is not None and [one["name"] for one in records] == list(paths)
    for one in records:
        for direction, figures in one["stages"].items():
            assert figures["R@1"] == report.figures.stages[one["name"]][direction]["R@1"]
        rows = [row for row in report.figures.comparisons if row["stage"] == one["name"] and row["metric"] == "R@1"]
        assert [row["delta"] for row in one["comparisons"]] == [row["delta"] for row in rows]
        assert [row["ci95"] for row in one["comparisons"]] == [row["ci95"] for row in rows]
        assert one["num_bytes"] > 0 and (one["max_difference"] == 0) is (one["name"] == "float32")
    sizes = {one["name"]: one["num_bytes"] for one in records}
    assert sizes["float32"] > 1.9 * sizes["bfloat16"] and sizes["onnx-float32"] > max(sizes["onnx-float16"], sizes["onnx-int8"])


def test_a_form_is_a_sentence() -> None:
    recall = {
        direction: {"R@1": value, "ci95": {"R@1": [0.1, 0.9]}} for direction, value in (("image_to_text", 0.4), ("text_to_image", 0.25))
    }
    row = {"stage": "bfloat16", "against": "float32", "direction": "both", "metric": "R@1", "delta": -1e-9, "ci95": [-0.005, 0.01]}
    record = {"name": "bfloat16", "num_bytes": 2_600_000, "max_difference": 0.0013, "stages": recall, "comparisons": [row]}
    line = (
        "bfloat16: 2.6 MB, R@1 image to text 40.0, text to image 25.0; mean +0.00 against float32 [-0.50, +1.00], vectors differ by at "
        "most 0.001"
    )
    assert exports_lines([record, record | {"comparisons": []}]) == [line, line.split(";")[0]]
    assert EXPORTS.notes([record]) == [f"Export, {line}."]


def test_towers_are_named_by_a_folder_or_by_a_file(made: Made, tmp_path: Path) -> None:
    folder = made.folder / "onnx"
    assert TowerFiles.find(folder) == TowerFiles(folder / "vision_model.onnx", folder / "text_model.onnx")
    halved = TowerFiles(folder / "vision_model_fp16.onnx", folder / "text_model_fp16.onnx")
    assert TowerFiles.find(folder / "text_model_fp16.onnx") == halved == TowerFiles.find(folder / "vision_model_fp16.onnx")
    assert halved.export == made.folder
    assert [TowerFiles.find(path) for path in (made.folder, made.folder / "bfloat16", tmp_path, "google/siglip-base-patch16-224")] == [
        None
    ] * 4
    shutil.copy(folder / "vision_model.onnx", tmp_path)
    with pytest.raises(SettingError, match="expected both towers .* text_model.onnx is not there"):
        TowerFiles.find(tmp_path)
    with pytest.raises(UserError, match="a folder without config.json"):
        load_siglip(folder)  # nothing is trained from


def test_the_command_measures_towers_by_the_name_of_a_file(
    made: Made, small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["--model", str(made.folder / "onnx" / "text_model_fp16.onnx"), "--also", f"whole={made.folder}"]
    words = [*models, "--data", str(small_world.manifest), "--split", "test", "--output", str(tmp_path / "out"), "--num-workers", "0"]
    monkeypatch.setattr("sys.argv", ["eval", *words])
    with pytest.raises(SystemExit) as ended:
        evaluate_command()
    assert ended.value.code == 0
    figures = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    records = {one["name"]: one["stages"] for one in measure_forms(ExportConfig(onnx=True), made.folder, made.dataset)}
    for name, form in (("model", "onnx-float16"), ("whole", "float32")):
        assert {way: figures[name][way]["R@1"] for way in records[form]} == {way: found["R@1"] for way, found in records[form].items()}


def test_damaged_towers_are_refused(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "export"
    shutil.copytree(made.folder, copy)
    with (copy / "onnx" / "text_model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    files = TowerFiles.find(copy / "onnx")
    assert files is not None
    with pytest.raises(UserError, match=r"damaged: text_model.onnx does not have the bytes"):
        RuntimeSiglip.load(files)
    (copy / "onnx" / "manifest.json").unlink()
    (copy / "onnx" / "text_model.onnx").write_bytes(b"no graph")
    with pytest.raises(SettingError, match=r"text_model.onnx: onnxruntime could not use it: InvalidProtobuf"):
        RuntimeSiglip.load(files)


def test_an_export_with_forms_is_replaced_and_anything_else_in_it_is_not_lost(made: Made, tmp_path: Path) -> None:
    check_replaceable(made.folder)
    shutil.copytree(made.folder, tmp_path / "export")
    (tmp_path / "export" / "onnx" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"is no earlier export \(it holds \['onnx'\]"):
        check_replaceable(tmp_path / "export")


def test_a_model_that_no_run_made_is_exported_with_other_forms_and_keeps_card_and_calibration(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the export of a soup is."""
    shutil.copytree(made.folder, tmp_path / "soup", ignore=shutil.ignore_patterns("onnx", "openvino", "open_clip", "*16"))
    out = tmp_path / "out"
    for words, names in ((["--dtypes", "bfloat16", "--open-clip"], {"bfloat16", "open_clip"}), (["--no-open-clip"], set())):
        assert export_command([str(tmp_path / "soup"), "--output", str(out), *words]) == 0
        assert {path.name for path in out.iterdir() if path.is_dir()} == names
        assert verify(out) == "" and (out / "README.md").read_text() == "a card\n"
        assert (out / "model.safetensors").read_bytes() == (made.folder / "model.safetensors").read_bytes()
        assert (out / "calibration.json").is_file() == (not names)  # of the same weights it stays
        (out / "calibration.json").write_text("{}")
    assert "exported to" in capsys.readouterr().out
    assert export_command([str(tmp_path / "soup"), "--output", str(out), "--checkpoint", "last"]) == 2
    assert "is one model and no run; leave it out" in capsys.readouterr().err
    (tmp_path / "soup" / "README.md").unlink()
    assert export_command([str(tmp_path / "soup"), "--output", str(out)]) == 0
    assert "## How to use it" in (out / "README.md").read_text()


def test_a_calibration_of_other_weights_goes(made: Made, tmp_path: Path) -> None:
    export_model(made.tuned, tmp_path / "export", "a card\n")
    (tmp_path / "export" / "calibration.json").write_text("{}")
    other = TunedModel(copy.deepcopy(made.tuned.siglip), made.tuned.inputs, "")
    with torch.no_grad():
        other.siglip.logit_scale.add_(1)
    export_model(other, tmp_path / "export", "a card\n")
    assert not (tmp_path / "export" / "calibration.json").exists()


def test_what_open_clip_has_no_place_for_is_told_before_training(small_world: SmallWorld, tmp_path: Path) -> None:
    shutil.copytree(small_world.base, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    path = small_world.write_config(tmp_path, export={"open_clip": True}, model={"base": str(tmp_path / "base")})
    job = load_config(path)
    job.run_folder.mkdir(parents=True)
    accelerator, processes = start_processes(job)
    with pytest.raises(UserError, match="export.open_clip: open_clip's SigLIP models cannot have activation relu"):
        prepare(job, load_data(job), accelerator, processes)


def test_every_form_knows_the_run_whose_data_it_is_measured_on(made: Made) -> None:
    run = made.folder.parent
    (run / "config.yaml").write_text("runs_folder: runs\ndata: {source: pairs.jsonl}\n")
    found = [RunData.of_model(str(made.folder / path)) for path in measured_forms(ALL).values()]
    assert [one.folder for one in found if one is not None] == [run] * len(found)
    (run / "config.yaml").unlink()


def test_a_missing_package_is_told_before_training(small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"export.openvino needs the package no_such_package.*pip install '.\[openvino\]'"):
        require_package("no_such_package", "openvino", "export.openvino")
    monkeypatch.setattr(forms, "require_package", lambda package, extra, by: pytest.fail(f"asked for {package}"))
    forms.require_forms(ExportConfig(dtypes=["bfloat16"], open_clip=True))  # which need none
    asked: list[tuple[str, str, str]] = []

    def refuse(*given: str) -> None:
        asked.append(given)
        raise UserError("not here")

    monkeypatch.setattr(forms, "require_package", refuse)
    for key in ("onnx", "openvino"):
        config = load_config(small_world.write_config(tmp_path, export={key: True}))
        with pytest.raises(UserError, match="not here"):
            start_processes(config)
    assert asked == [("onnx", "onnx", "export.onnx"), ("onnx", "onnx", "export.openvino")]


NAMES = """logit_scale logit_bias visual.trunk.pos_embed visual.trunk.patch_embed.proj.{} visual.trunk.blocks.0.norm1.{}
    visual.trunk.blocks.0.attn.qkv.{} visual.trunk.blocks.0.attn.proj.{} visual.trunk.blocks.0.norm2.{} visual.trunk.blocks.0.mlp.fc1.{}
    visual.trunk.blocks.0.mlp.fc2.{} visual.trunk.norm.{} visual.trunk.attn_pool.latent visual.trunk.attn_pool.q.{}
    visual.trunk.attn_pool.kv.{} visual.trunk.attn_pool.proj.{} visual.trunk.attn_pool.norm.{} visual.trunk.attn_pool.mlp.fc1.{}
    visual.trunk.attn_pool.mlp.fc2.{} text.token_embedding.weight text.positional_embedding text.transformer.resblocks.0.ln_1.{}
    text.transformer.resblocks.0.attn.in_proj_{} text.transformer.resblocks.0.attn.out_proj.{} text.transformer.resblocks.0.ln_2.{}
    text.transformer.resblocks.0.mlp.c_fc.{} text.transformer.resblocks.0.mlp.c_proj.{} text.ln_final.{} text.text_projection.{}"""
"""Of open_clip 3.3's ViT-B-16-SigLIP with one layer, as its state_dict lists them; {}: weight and bias."""


def test_open_clip_names_every_weight(made: Made) -> None:
    state = load_file(made.folder / "model.safetensors")
    found = open_clip_state(state, 1, 1)
    assert set(found) == {name.format(kind) for name in NAMES.split() for kind in ("weight", "bias")}
    written = load_file(made.folder / "open_clip" / "open_clip_model.safetensors")
    assert sum(value.numel() for value in written.values()) == sum(value.numel() for value in state.values())
    block = written["text.transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(block[32:64], state["text_model.encoder.layers.1.self_attn.k_proj.weight"])
    assert written["logit_scale"].shape == () and written["visual.trunk.pos_embed"].shape == (1, 4, 32)
    config = made.tuned.siglip.config
    config = type(config)(text_config=config.text_config.to_dict() | {"hidden_act": "relu"}, vision_config=config.vision_config.to_dict())
    with pytest.raises(UserError, match="cannot have activation relu"):
        check_open_clip(config)


def test_open_clip_gives_the_same_vectors(made: Made, tmp_path: Path) -> None:
    packages = os.environ.get("OPEN_CLIP_PACKAGES")
    if packages is None and find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed (the extra open-clip), and OPEN_CLIP_PACKAGES names no folder with it")
    write_pairs(made.dataset, tmp_path)
    found = read_with("open_clip", made.folder, tmp_path, packages)
    assert "fault" not in found, found
    np.testing.assert_allclose(found["images"], embed_images(made.tuned.siglip, made.tuned.inputs, made.dataset), atol=1e-6, rtol=0)
    captions = embed_captions(made.tuned.siglip, made.tuned.inputs, made.dataset.captions)
    np.testing.assert_allclose(found["captions"], captions, atol=1e-6, rtol=0)


def test_other_tools_read_the_export_in_processes_of_their_own(made: Made, tmp_path: Path) -> None:
    readers = {"onnxruntime-fp32": "onnxruntime", "missing": "no_such_tool"}
    measure(made.dataset, made.folder, readers, {}, tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "tools.json").read_text())}
    assert rows["onnxruntime-fp32"]["max_difference"] < 1e-6
    lines = {line.split(" | ")[0].strip("| "): line for line in table(tmp_path)}
    cells = [lines[name].split(" | ")[2:4] for name in ("the run's own evaluation", "onnxruntime-fp32")]
    assert cells[0] == cells[1] and "KeyError" in lines["missing"] and RUN == "run"

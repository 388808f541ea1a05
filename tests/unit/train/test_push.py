"""./launch.sh export ... --push: what is sent to a stand-in of the hub, and what is said where nothing can be."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.encoder.sealed import seal
from eval.errors import UserError
from tests.hub_server import TOKEN, Hub, go_online, serving
from train.engine.card import HERE
from train.export.__main__ import main
from train.push import Push

NAME = "birds-team/birds"
CARD = f"---\nlibrary_name: transformers\n---\n\n# Birds\n\n```python\n{HERE}\n```\n"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "tokenizer_config.json": b'{"a": 1}'}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "birds" / "export"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text("name: birds\n")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    seal(folder, without=["README.md"])
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as served:
        go_online(monkeypatch, served.endpoint, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        served.owners.add("birds-team")
        served.written = tmp_path / "written"
        yield served


def held(hub: Hub, name: str = NAME) -> dict[str, bytes]:
    folder = hub.commits[name, hub.revisions[name]["main"]]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(hub: Hub) -> list[str]:
    """Requests that change something."""
    return [line for line in hub.asked if any(word in line for word in ("create", "commit/", "PUT", "batch", "preupload"))]


def push(folder: Path, *options: str, name: str = NAME) -> int:
    return main([str(folder), "--push", name, *options])


def test_the_export_goes_out_whole_in_one_commit_and_private(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(export.parent) == 0
    found = held(hub)
    assert {name: found[name] for name in FILES} == FILES and found["manifest.json"] == (export / "manifest.json").read_bytes()
    assert found["README.md"].decode() == CARD.replace(HERE, f'name = "{NAME}"') and (export / "README.md").read_text() == CARD
    assert found.keys() == {*FILES, "manifest.json", "README.md", ".gitattributes"}
    assert hub.messages == ["Export: Birds"] and hub.private == {NAME: True} and list(hub.large.values()) == [FILES["model.safetensors"]]
    printed = capsys.readouterr().out
    assert f"push      {export} -> {hub.endpoint}/{NAME} (private)\n" in printed and "10,240 bytes  model.safetensors\n" in printed
    assert f"sent      {hub.endpoint}/{NAME}/commit/" in printed


def test_a_dry_run_shows_files_and_sizes_and_asks_the_hub_nothing(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(export, "--dry-run", "--public") == 0
    printed = capsys.readouterr().out
    total = sum(path.stat().st_size for path in export.iterdir())
    assert "10,240 bytes  model.safetensors\n" in printed and f"{total:,} bytes in 5 files, one commit\n" in printed
    assert "(public: everybody may read it)" in printed and "nothing was sent" in printed and hub.asked == []


def test_public_is_public(hub: Hub, export: Path) -> None:
    assert push(export, "--public") == 0 and hub.private == {NAME: False}


def test_what_exists_is_left_alone_unless_it_is_to_be_updated(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(export) == 0
    before = held(hub)
    assert push(export) == 2 and held(hub) == before and len(hub.messages) == 1
    assert "exists already and holds 5 file(s)" in (error := capsys.readouterr().err) and "--update" in error
    (export / "config.json").write_bytes(b'{"new": 1}')
    (export / "tokenizer_config.json").unlink()
    seal(export, without=["README.md"])
    assert push(export, "--update") == 0 and len(hub.messages) == 2
    assert held(hub)["config.json"] == b'{"new": 1}' and "tokenizer_config.json" not in held(hub) and ".gitattributes" in held(hub)


def test_nothing_goes_to_a_public_repository_unasked(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(export) == 0
    hub.private[NAME] = False
    assert push(export, "--update") == 2 and "is public" in capsys.readouterr().err and len(hub.messages) == 1
    assert push(export, "--update", "--public") == 0


def test_a_repository_that_was_made_and_is_empty_is_filled(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr("huggingface_hub.HfApi.create_commit", fail)
        assert push(export) == 2
    assert held(hub).keys() == {".gitattributes"}
    assert push(export) == 0 and "model.safetensors" in held(hub)


def test_other_forms_and_the_calibration_go_too_and_damage_in_them_is_seen(export: Path) -> None:
    for inner in (export / "bfloat16", export / "open_clip" / "timm", export / "open_clip"):
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "model.safetensors").write_bytes(b"weights")
        seal(inner)
    (export / "calibration.json").write_text("{}")
    inner = {f"{place}/{name}" for place in ("bfloat16", "open_clip", "open_clip/timm") for name in ("model.safetensors", "manifest.json")}
    push = Push(folder=export, name=NAME)
    assert push.files().keys() == {*FILES, "README.md", "manifest.json", "calibration.json"} | inner
    (export / "open_clip" / "timm" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="open_clip/timm is no whole export: model.safetensors does not have the bytes"):
        push.files()


@pytest.mark.parametrize("what", ["changed", "missing", "unsealed", "foreign", "no folder"])
def test_only_what_was_exported_is_sent(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    folder, words = export, "no whole export"
    if what == "changed":
        (export / "config.json").write_bytes(b"{ }")
    elif what == "missing":
        (export / "config.json").unlink()
    elif what == "unsealed":
        (export / "manifest.json").unlink()
    elif what == "foreign":
        (export / "onnx").mkdir()
        (export / "onnx" / "notes.txt").write_text("for me alone")
        words = "onnx/notes.txt"
    else:
        folder, words = export.parent / "nothing", "is not there"
    for options in ((), ("--dry-run",)):
        assert push(folder, *options) == 2 and words in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no token", "no token of the hub is here; log in"),
        ("wrong token", "the hub does not know this token (HTTP 401)"),
        ("no right", "this token may not write to others (HTTP 403)"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no network", "could not be reached"),
        ("no name", "expected ORG/NAME, as in somebody/birds"),
        ("bad name", "expected ORG/NAME, found 'a/b/c'"),
    ],
)
def test_what_is_in_the_way_is_said(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str, words: str
) -> None:
    name = {"no right": "others/birds", "no name": "birds", "bad name": "a/b/c"}.get(case, NAME)
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    elif case == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif case == "no network":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert push(export, name=name) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1
    assert not [line for line in sent(hub) if "repos/create" not in line] and NAME not in hub.revisions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--public"], "--push ORG/NAME, which is not given"),
        (["--output", "x", "--dry-run"], "--push ORG/NAME, which is not given"),
        ([], "give --output FOLDER"),
        (["--push", NAME, "--checkpoint", "last"], "needs --output FOLDER"),
    ],
)
def test_options_that_need_another(export: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(export.parent), *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err

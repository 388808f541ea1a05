"""Models of the hub, fetched from a stand-in of it: one commit, the files that are needed, and what is said where they cannot be had."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
from eval.encoder.hub import HubModel, revision_in_use, revisions_of, without_revision
from eval.errors import SettingError, UserError, WriteError, named
from tests.bin_checkpoints import bin_folder
from tests.hub_server import COMMITS, TOKEN, Hub, go_online, serving

NAME = "someone/siglip"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as served:
        go_online(monkeypatch, served.endpoint, tmp_path / "cache")
        yield served


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", forget(monkeypatch))


def forget(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the next request be a new process's; returns the hub's cache."""
    from huggingface_hub import constants

    from eval.encoder import hub

    hub._snapshot.cache_clear()
    hub._RESOLVED.clear()
    return constants.HF_HUB_CACHE


def weights_of(name: str | Path) -> str:
    return hash_weights(load_siglip(name)[0])


def changed(folder: Path, place: Path) -> Path:
    """The same checkpoint with another bias."""
    model, inputs = load_siglip(folder)
    with torch.no_grad():
        model.logit_bias += 1
    model.save_pretrained(place)
    inputs.save(place)
    return place


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("safe", [True, False])
def test_what_is_fetched_is_the_checkpoint_and_no_more(hub: Hub, tiny_siglip: Path, tmp_path: Path, safe: bool, shards: int) -> None:
    folder = tmp_path / "repository"
    if safe:
        load_siglip(tiny_siglip)[0].save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
        for path in tiny_siglip.iterdir():
            if not (folder / path.name).exists() and path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
    else:
        bin_folder(tiny_siglip, folder, shards)
    assert len(list(folder.glob("*.safetensors" if safe else "*.bin"))) == 1 if not shards else True
    for name in ("tf_model.h5", "model.py", "rust_model.ot") + (("pytorch_model.bin",) if safe else ()):
        (folder / name).write_bytes(b"of no use")
    hub.publish(NAME, folder)
    model, inputs = load_siglip(NAME)
    assert hash_weights(model) == weights_of(tiny_siglip)
    assert (model.name_or_path, model.config.name_or_path) == (NAME, NAME)
    assert revision_in_use(NAME) == COMMITS[0] and revisions_of([NAME, str(tiny_siglip)]) == {NAME: COMMITS[0]}
    weights = {path.name for path in folder.glob("*.safetensors" if safe else "*.bin")}
    assert {name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".h5", ".py", ".ot"))} == weights
    assert torch.equal(inputs.token_ids(["a red circle"]), load_siglip(tiny_siglip)[1].token_ids(["a red circle"]))


def test_config_and_weights_are_of_one_commit_though_the_branch_moves(hub: Hub, tiny_siglip: Path, tmp_path: Path) -> None:
    hub.publish(NAME, tiny_siglip)
    load_siglip_config(NAME)
    hub.publish(NAME, changed(tiny_siglip, tmp_path / "later"), COMMITS[1])
    assert weights_of(NAME) == weights_of(tiny_siglip) and revision_in_use(NAME) == COMMITS[0]


@pytest.mark.parametrize("revision", [COMMITS[0], "v1", "refs/pr/7"])
def test_a_revision_is_pinned(hub: Hub, tiny_siglip: Path, tmp_path: Path, revision: str) -> None:
    hub.publish(NAME, tiny_siglip, COMMITS[0], revision)
    hub.publish(NAME, later := changed(tiny_siglip, tmp_path / "later"), COMMITS[1])
    assert weights_of(f"{NAME}@{revision}") == weights_of(tiny_siglip) != weights_of(later) == weights_of(NAME)
    assert revisions_of([NAME, f"{NAME}@{revision}"]) == {NAME: COMMITS[1], f"{NAME}@{revision}": COMMITS[0]}
    assert without_revision(f"{NAME}@{revision}") == NAME


def test_a_cached_model_is_read_offline_and_where_there_is_no_network(
    hub: Hub, tiny_siglip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish(NAME, tiny_siglip, COMMITS[0], "v1")
    expected = weights_of(f"{NAME}@v1")
    weights_of(NAME)
    forget(monkeypatch)
    go_online(monkeypatch, nobody_listens(), tmp_path / "cache")
    assert weights_of(NAME) == expected and f"the hub cannot be asked for {NAME}" in capsys.readouterr().err
    go_offline(monkeypatch)
    hub.asked.clear()
    assert weights_of(NAME) == weights_of(f"{NAME}@v1") == expected
    assert revision_in_use(NAME) == COMMITS[0] and not hub.asked


def nobody_listens() -> str:
    """An address at which nothing answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught, named({"model": "--model"}):
        load_siglip(name)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert message.startswith("--model: ") and "\n" not in message and message.count(": --model") == 0
    return message


def test_a_gated_model_needs_its_terms_accepted_and_a_login(hub: Hub, tiny_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, tiny_siglip)
    hub.gated.add(NAME)
    for token, status in ((None, 401), ("hf_of_somebody_else", 403)):
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda token=token: token)
        message = refusal(NAME)
        assert f"{NAME}: a gated model, which this person may not read (HTTP {status})" in message
        assert f"Accept its terms at {hub.endpoint}/{NAME}, then log in: hf auth login" in message
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
    assert weights_of(NAME) == weights_of(tiny_siglip)


def test_what_the_hub_does_not_have_is_named(hub: Hub, tiny_siglip: Path, tmp_path: Path) -> None:
    hub.publish(NAME, tiny_siglip)
    message = refusal("someone/nothing")
    assert "no such folder is here, and the hub has no model someone/nothing that this person may read (HTTP 401)" in message
    assert "Check the name" in message and "hf auth login" in message
    assert f"the hub has no revision 'v9' of {NAME} (HTTP 404)" in refusal(f"{NAME}@v9")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("a repository of something else")
    hub.publish("someone/else", tmp_path / "data")
    assert "someone/else has no config.json: no model in the format of transformers" in refusal("someone/else")


def test_no_network_and_nothing_cached(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = nobody_listens()
    go_online(monkeypatch, address, tmp_path / "cache")
    message = refusal("someone/never-fetched")
    assert f"could not be fetched from {address} (" in message and "Check the connection" in message
    go_offline(monkeypatch)
    assert "HF_HUB_OFFLINE is set. Fetch it where there is a network: hf download a/b --revision v1" in refusal("a/b@v1")


@pytest.mark.parametrize("name", ["../elsewhere/model", "a/b/c", "a b", "", "owner/name@", "-/--", ".hidden"])
def test_a_name_of_no_form_is_refused_without_asking(hub: Hub, name: str) -> None:
    message = refusal(name)
    assert "no such folder is here" in message and "OWNER/NAME@REVISION" in message and "relative to" in message or "no hub id" in message
    assert not hub.asked


def test_a_cache_that_cannot_be_written_ends_with_code_4(hub: Hub, tiny_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, tiny_siglip)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.encoder.hub.hf_hub_download", full)
    with pytest.raises(WriteError, match=r"could not be written to the hub's cache, .*No space left.*HF_HOME") as caught:
        load_siglip(NAME)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("google/siglip-base-patch16-224", HubModel("google/siglip-base-patch16-224", None)),
        ("a/b@v1.0", HubModel("a/b", "v1.0")),
        ("bert-base-uncased@refs/pr/3", HubModel("bert-base-uncased", "refs/pr/3")),
        ("runs/a/export", None),
        ("/a/b", None),
        ("a/b@", None),
        ("~/b", None),
    ],
)
def test_names(name: str, model: HubModel | None) -> None:
    assert HubModel.parse(name) == model


def test_a_folder_is_never_asked_for(hub: Hub, tiny_siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_siglip.parent.parent)
    load_siglip(f"{tiny_siglip.parent.name}/{tiny_siglip.name}")
    assert not hub.asked and re.fullmatch("[a-z0-9-]+", tiny_siglip.name) is not None or not hub.asked
    with pytest.raises(SettingError, match="a folder without config.json"):
        load_siglip_config(str(tmp_path))

"""A data set of the hub at a revision: fetched from a stand-in of the hub, and read offline from what was fetched.

`datasets` reads the address of the hub, and whether it is offline, when it is imported: each reading is a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.errors import UserError
from eval.manifest.formats.hub import HubId
from eval.manifest.manifest import read_manifest
from eval.manifest.source import open_rows
from tests.hub_server import COMMITS, Hub, serving
from tests.small_job import SmallWorld
from tests.unit.eval.manifest.test_arrow import table
from tests.unit.eval.manifest.written_formats import picture
from train.config.load import is_data, run_name

ROOT = Path(__file__).parents[4]
NAME = "someone/shoes"
READ = """
import json, sys
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
found = []
for source in sys.argv[1:]:
    try:
        manifest = read_manifest(source)
        record = load_split(manifest, "train").record()
        found.append([[image.captions for image in manifest.images], record.get("revision"), manifest.lines()])
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def cache(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three revisions were fetched to; the branch main is at the later of two commits."""
    root = tmp_path_factory.mktemp("hub")
    for place, caption in zip(("first", "second"), ("a shoe", "a boot"), strict=True):
        (root / place / "data").mkdir(parents=True)
        table("a", caption=[caption]).to_parquet(str(root / place / "data" / "train-00000-of-00001.parquet"))
    (root / "second" / "README.md").write_text("# Shoes, and boots\n")
    hub.publish(f"datasets/{NAME}", root / "first", COMMITS[0], "v1")
    hub.publish(f"datasets/{NAME}", root / "second", COMMITS[1])
    return root / "cache"


def read(cache: Path, hub: Hub, *sources: str, **variables: str) -> list[Any]:
    return json.loads(run(cache, hub, "-c", READ, *sources, **variables).stdout)


def run(cache: Path, hub: Hub, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(cache), "HF_ASSETS_CACHE": str(cache / "assets"), "HF_ENDPOINT": hub.endpoint}
    environment |= {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_a_revision_is_read_online_and_offline_and_one_that_is_not_there_is_named(hub: Hub, cache: Path) -> None:
    sources = [f"{NAME}@v1", f"{NAME}@{COMMITS[0]}", NAME, f"{NAME}@v9"]
    *found, refusal = read(cache, hub, *sources)
    expected = [([["a shoe"]], COMMITS[0]), ([["a shoe"]], COMMITS[0]), ([["a boot"]], COMMITS[1])]
    assert [(captions, revision) for captions, revision, _ in found] == expected
    assert found[0][2] == [f"commit    {NAME}@v1 is read at {COMMITS[0]} of the hub"]
    assert f"the hub has no revision 'v9' of {NAME}; {hub.endpoint}/datasets/{NAME}/commits lists" in refusal and "\n" not in refusal

    hub.asked.clear()
    *found, refusal = read(cache, hub, *sources, HF_HUB_OFFLINE="1")
    assert [(captions, revision) for captions, revision, _ in found] == expected
    assert f"HF_HUB_OFFLINE is set and revision 'v9' of {NAME} was not fetched before. Run this command once" in refusal
    assert "\n" not in refusal and not hub.asked


def test_commands_take_a_revision_offline_and_record_its_commit(hub: Hub, cache: Path, small_world: SmallWorld, tmp_path: Path) -> None:
    read(cache, hub, f"{NAME}@v1")
    words = ["--data", f"{NAME}@v1", "--split", "train", "--model", small_world.base, "--output", tmp_path / "report"]
    done = run(cache, hub, "-m", "eval", *words, HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true")
    data = json.loads((tmp_path / "report" / "report.json").read_text())["data"]
    assert (data["source"], data["revision"]) == (f"{NAME}@v1", COMMITS[0])
    assert f"commit    {NAME}@v1 is read at {COMMITS[0]} of the hub" in done.stdout
    assert f"commit {COMMITS[0]} of the hub" in (tmp_path / "report" / "report.html").read_text()
    run(cache, hub, "-m", "train.init", f"{NAME}@v1", "--output", tmp_path / "shoes.yaml", HF_HUB_OFFLINE="1")
    written = yaml.safe_load((tmp_path / "shoes.yaml").read_text())
    assert (written["name"], written["data"]["source"]) == ("shoes", f"{NAME}@v1")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name@v1.0", ("owner/name", None, "v1.0")),
        ("owner/name:small@refs/pr/7", ("owner/name", "small", "refs/pr/7")),
        (f"owner/name@{COMMITS[0]}", ("owner/name", None, COMMITS[0])),
        ("owner/name@", None),
        ("owner/name@../../x", None),
        ("owner/name@/x", None),
        ("owner/name@v1:small", None),
        ("data/pairs@2.csv", None),
        ("name@v1", None),
    ],
)
def test_what_may_be_a_hub_id_with_a_revision(source: str, expected: tuple[str, str | None, str] | None) -> None:
    found = HubId.parse(source)
    assert (found and (found.name, found.config, found.revision)) == expected
    assert is_data(source) is (expected is not None)


def test_a_run_is_called_as_the_data_set_without_its_revision() -> None:
    assert run_name("owner/name@refs/pr/7") == run_name("owner/name") == "name"


def test_local_paths_with_an_at_sign_go_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eval.manifest.source.read_hub_dataset", lambda *_: pytest.fail("a path is here"))
    (tmp_path / "data" / "pairs@v1").mkdir(parents=True)
    (tmp_path / "data" / "pairs@v1" / "a.png").write_bytes(picture("a"))
    (tmp_path / "data" / "pairs@v1" / "a.txt").write_text("a dog")
    table("a", caption=["A"]).to_parquet(str(tmp_path / "data" / "pairs@2.parquet"))
    for source in ("data/pairs@v1", "data/pairs@2.parquet", "data/pairs@?.parquet"):
        manifest = read_manifest(source)
        assert len(manifest.images) == 1 and manifest.lines() == []
    with pytest.raises(UserError, match=r"data/pairs@3\.parquet: no such file or folder"):
        open_rows("data/pairs@3.parquet", {})

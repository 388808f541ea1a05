"""Every page and file that code or documents name is in the repository, and nothing names a place outside it."""

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"(?<![\w/.~$}-])[\w/.-]+\.(?:md|py|sh|yaml|j2)\b(?![\w/])")
OUTSIDE = re.compile(r"(?<![\w.])(?:\.\./shared\b|/(?:work|home|root|Users)/[\w.-]+)")
PLACEHOLDER = re.compile(r"(?:[\w/]+/)?(?:NAME|FILE|CONFIG|STUDY|OUTPUT|PATH)\.\w+")
SKIPPING = {
    "tests/integration/test_oracles.py",
    "tests/hub_files.py",
    "tests/unit/eval/dataset/test_photographs.py",
}
"""Tests that read a folder next to the clone, and are skipped where it is absent."""
OTHERS = {
    "config.yaml": "a run's own copy of its configuration",
    "card.md": "written by a test",
    "default_config.yaml": "accelerate's",
    "main_eval.py": "of ARO's repository",
    "dataset_zoo/aro_datasets.py": "of ARO's repository",
    "data/utils.py": "of salesforce/BLIP",
    "blip_processors.py": "of salesforce/LAVIS",
    "dataset/utils.py": "of salesforce/ALBEF",
    "models/tokenization_bert.py": "of salesforce/ALBEF",
    "models/vit.py": "of salesforce/ALBEF",
    "Retrieval.py": "of salesforce/ALBEF",
    "utils.py": "of salesforce/ALBEF",
    "base/modules/transformer.py": "of sentence-transformers",
    "processing_utils.py": "of transformers",
    "pipelines/zero_shot_image_classification.py": "of transformers",
    "config.py": "of the checkpoints' original repositories",
    "src/open_clip/loss.py": "of open_clip",
    "PATH/TO/src/open_clip/loss.py": "of open_clip",
    "loss.py": "of open_clip",
    "train.py": "a user's own script, whose name must not be taken for a command",
}


def tracked() -> list[Path]:
    """Files of the repository, those not yet committed included."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def prose(source: str) -> str:
    """Docstrings and comments of Python source, each at its own line, all else blank."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] += token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number, line in enumerate(node.value.value.split("\n"), node.lineno):
                lines[number] += line
    return "\n".join(lines[1:])


def text_of(path: Path) -> str:
    """What may name files: everything, but of a test only docstrings and comments, since tests make files up."""
    source = path.read_text(encoding="utf-8")
    return prose(source) if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == "tests" else source


def missing(text: str, folder: str, files: set[str]) -> list[tuple[int, str]]:
    """(line, name) of each named file that is neither below the root, nor below the folder of the text, nor the bare name of a file."""
    bare = {name.rsplit("/", 1)[-1] for name in files}
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        for name in NAMED.findall(line):
            beside = (ROOT / folder / name).resolve()
            below = beside.relative_to(ROOT).as_posix() if beside.is_relative_to(ROOT) else ""
            known = name in OTHERS or PLACEHOLDER.fullmatch(name) is not None
            if not known and below not in files and name.removeprefix("./") not in files | bare:
                found.append((number, name))
    return found


def sources() -> list[Path]:
    """What is read: code, pages, templates, scripts and configurations; not the log, which tells of the past."""
    suffixes = {".py", ".md", ".j2", ".sh", ".yaml", ".yml"}
    return [path for path in tracked() if path.suffix in suffixes and path != ROOT / "docs" / "log.md"]


def test_every_file_that_is_named_exists() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in tracked()}
    wrong = [
        f"{path.relative_to(ROOT)}:{number} names {name}"
        for path in sources()
        for number, name in missing(text_of(path), path.relative_to(ROOT).parent.as_posix(), files)
    ]
    assert wrong == [], "name the file as it is called now, or add it to OTHERS with whose it is"


def test_nothing_outside_the_repository_is_named() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in sources()
        if path != Path(__file__) and path.relative_to(ROOT).as_posix() not in SKIPPING
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if OUTSIDE.search(line)
    ]
    assert wrong == []
    assert all("skip" in (ROOT / name).read_text(encoding="utf-8") for name in SKIPPING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see docs/gone.md and docs/here.md", ["docs/gone.md"]),
        ("[page](here.md), ../docs/here.md, ./launch.sh, launch.sh", []),
        ("here.py and there.py", ["there.py"]),
        ("./launch.sh CONFIG.yaml > OUTPUT.md", []),
    ],
)
def test_the_check_sees_what_it_should(text: str, expected: list[str]) -> None:
    files = {"docs/here.md", "launch.sh", "eval/here.py"}
    assert [name for _, name in missing(text, "docs", files)] == expected


def test_of_a_test_docstrings_and_comments_are_read() -> None:
    source = 'def f():\n    """See a.md."""\n    x = "b.md"  # c.md\n'
    assert NAMED.findall(prose(source)) == ["a.md", "c.md"]


def test_every_link_of_a_page_leads_to_a_file_and_a_heading() -> None:
    wrong = []
    for page in [path for path in tracked() if path.suffix == ".md" and path != ROOT / "docs" / "log.md"]:
        for name, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
            if name.startswith("http"):
                continue
            target = page.parent / name if name else page
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if target.is_file() and anchor else []
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if not target.exists() or (anchor and anchor not in anchors):
                wrong.append(f"{page.relative_to(ROOT)} links to {name}{'#' + anchor if anchor else ''}")
    assert wrong == []

"""What a reader meets: README's size, pages of one question each that begin with its answer, results by their conclusions, and the site."""

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.conclusion import conclusions

ROOT = Path(__file__).parents[3]
DOCS, RESULTS = ROOT / "docs", ROOT / "results"
MOST_WORDS, FIRST_LINES = 1200, 10
LISTS = {"configuration.md": "every key, written by python -m train.config --write", "log.md": "what was tried, by date"}
"""Pages that nobody reads from top to bottom."""
PAGES = [path for path in sorted(DOCS.glob("*.md")) if path.name not in LISTS]
LANGUAGES = {"bash", "console", "json", "python", "sql", "text", "yaml"}


def num_words(text: str) -> int:
    """Words: what stands between blanks and has a letter or a digit."""
    return sum(re.search(r"\w", word) is not None for word in text.split())


def answer(page: str) -> str:
    """The first line of prose among the first lines of a page: no heading, list, table, picture or code; empty: there is none."""
    is_code = False
    for line in page.split("\n")[:FIRST_LINES]:
        is_code ^= line.startswith("```")
        if line.strip() and not is_code and not re.match(r"#|```|\||[-*] |\d+\. |!\[|<!--", line):
            return line
    return ""


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("# T\n\nYes: it does.\n", "Yes: it does."),
        ("# T\n\n```bash\nls\n```\n\n| a |\n- b\n1. c\n![d](e)\n", ""),
        ("#\n" * 10 + "late", ""),
    ],
)
def test_the_check_finds_the_answer(page: str, expected: str) -> None:
    assert answer(page) == expected


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_answers_its_title_and_is_read_in_a_few_minutes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and len(re.findall(r"^# ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)) == 1
    assert answer(text), f"expected prose among the first {FIRST_LINES} lines: the answer to the title"
    assert num_words(text) <= MOST_WORDS, "split it by question, or move its tables to a page of reference"


def test_every_block_of_code_says_what_it_is() -> None:
    """bash: a test may run it; console: it is only shown."""
    wrong = []
    for path in (*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        if path.name != "log.md":
            fences = re.findall(r"^```(\w*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert len(fences) % 2 == 0, path
            wrong += [(path.name, language) for language in fences[::2] if language not in LANGUAGES]
    assert wrong == []


def test_the_readme_is_a_screen_and_a_half() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert num_words(text) <= 600 and text.count("\n") <= 90


def test_every_result_begins_with_its_conclusion() -> None:
    found = conclusions((RESULTS / "README.md").read_text(encoding="utf-8"))
    pages = {path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.md")} - {"README"}
    assert found.keys() == pages, "a page is a line of results/README.md"
    for page in pages - {"study/demo"}:  # written by ./launch.sh study: its first block is the answer
        text = (RESULTS / f"{page}.md").read_text(encoding="utf-8")
        first, rest = text.split("\n")[2], text.split("\n", 3)[3]
        assert first.startswith("**") and first.replace("**", "") == found[page], page
        for number in re.findall(r"\d[\d,.]*\d|\d{2,}", found[page]):
            assert number in rest or page in ("rivals", "mining-forms"), f"{page}: {number} is in the conclusion and not on the page"


def navigated(entries: list) -> list[str]:
    """The pages of a site's nav."""
    return [page for entry in entries for value in entry.values() for page in (navigated(value) if isinstance(value, list) else [value])]


def test_the_sites_nav_names_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = navigated(site["nav"])
    assert len(pages) == len(set(pages)) and {page for page in pages if "/" not in page} == {path.name for path in DOCS.glob("*.md")}
    assert [page for page in pages if "/" in page] == ["results/README.md"] and site["docs_dir"] == "docs"
    questions = set(re.findall(r"\]\((?:\.\./)?([\w/-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert set(pages) - {"index.md"} <= questions, "docs/index.md has a question for each page"

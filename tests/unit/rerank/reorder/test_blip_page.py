"""docs/blip-with-transformers.md: its code runs, and says what the program says."""

import re
from pathlib import Path

import numpy as np
import pytest

from rerank.scorers.load import load_scorer

PAGE = Path(__file__).parents[4] / "docs" / "blip-with-transformers.md"


@pytest.fixture
def snippet() -> str:
    """The page's only Python block."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_the_snippet_runs_and_scores_as_the_program_does(tiny_blip: Path, tmp_path: Path, noise, snippet: str) -> None:
    noise(7).save(tmp_path / "photo.png")
    for written, here in (("Salesforce/blip-itm-base-coco", str(tiny_blip)), ("photo.jpg", str(tmp_path / "photo.png"))):
        assert snippet.count(written) == 1
        snippet = snippet.replace(written, here)
    names: dict = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    scores = load_scorer(str(tiny_blip)).score(noise(7), names["candidate_captions"])
    np.testing.assert_allclose(names["scores"].cpu().numpy(), scores, atol=1e-5, rtol=0)
    assert np.ptp(scores) > 0.05
    assert names["reranked"] == [names["candidate_captions"][place] for place in np.argsort(-scores, kind="stable")]


def test_what_the_page_says_cannot_run_cannot_run(tiny_blip: Path, tmp_path: Path, noise, snippet: str) -> None:
    noise(7).save(tmp_path / "photo.png")
    snippet = snippet.replace("Salesforce/blip-itm-base-coco", str(tiny_blip)).replace("photo.jpg", str(tmp_path / "photo.png"))
    broken = snippet.replace(".itm_score[:, 1]", ".logits_per_image[:, 0]")
    assert broken != snippet
    with pytest.raises(AttributeError, match="logits_per_image"):
        exec(compile(broken, str(PAGE), "exec"), {})

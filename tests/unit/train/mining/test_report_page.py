"""train/mining/report_page.py: a page with the report's figures and twenty pairs, whose captions are escaped."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.shared_files import age
from tests.small_job import SmallWorld, load, write_pictures
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.mining.candidates import Candidates
from train.mining.mine import Selector
from train.mining.report import RULES, Mined, marked_false, summarize
from train.mining.report_page import example_rows, page, write_mining_report

NASTY = "<script>alert(1)</script> & \"quotes\" 'too' {{ 7 * 7 }}"


def mined_among(pool: CaptionPool) -> Mined:
    """Three negatives for every image, the pool's last caption first in each list."""
    count = pool.dataset.num_images
    draws = np.random.default_rng(0)
    captions = np.stack([np.concatenate([[len(pool) - 1], draws.permutation(len(pool) - 1)[:30]]) for _ in range(count)])
    cosines = -np.sort(-draws.normal(size=captions.shape).astype(np.float32), axis=1)
    found = Candidates(np.arange(count), captions, cosines, np.full(count, 9, np.float32), np.ones(count, bool))
    config = MiningConfig(mine_every_steps=1, negatives_per_image=3)
    return Selector(pool, np.float32(1), np.float32(0), config).select("0123abcd", found)


def test_the_page_escapes_captions_and_shows_twenty_pairs_with_pictures(small_world: SmallWorld, tmp_path: Path) -> None:
    pool = CaptionPool(load(small_world.manifest), AdditionalCaptions([NASTY], np.array([1])))
    mined = mined_among(pool)
    truth = {(pool.dataset.image_ids[0], "pool#1")}
    before = replace(mined.negatives, captions_N=mined.negatives.captions_N[::-1])
    report = summarize(mined, pool, truth, before)
    path = write_mining_report(tmp_path, report, mined.negatives, pool, truth)
    page = path.read_text(encoding="utf-8")
    assert path.name == "0123abcd.html" and json.loads((tmp_path / "0123abcd.json").read_text()) == report.as_record()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in page and "{{ 7 * 7 }}" in page
    assert page.count("<article") == page.count('src="data:image/jpeg;base64,') == 20 and "http" not in page
    assert all(words in page for words in RULES.values()) and "False by data.truth" in page and "of the previous table" in page
    assert "./launch.sh study CONFIG.yaml" in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0123abcd.html", "0123abcd.json"]


def test_histograms_count_every_score_and_mark_what_is_known_to_be_false(small_world: SmallWorld) -> None:
    pool = CaptionPool(load(small_world.manifest))
    mined = mined_among(pool)
    table = mined.negatives
    truth = {(pool.dataset.image_ids[image], pool.caption_id(caption)) for image, caption in [(0, table.of(0)[0]), (7, table.of(7)[2])]}
    report = summarize(mined, pool, truth, None)
    positive, negative, margin = (report.histograms[side] for side in ("positive", "negative", "margin"))
    assert positive.edges == negative.edges and (sum(positive.counts), sum(negative.counts), sum(margin.counts)) == (40, 120, 120)
    assert positive.false_negatives is None and sum(negative.false_negatives or []) == sum(margin.false_negatives or []) == 2
    middle = len([score for score in table.scores_N if negative.edges[1] <= score < negative.edges[-2]])
    assert sum(negative.counts[1:-1]) == middle > 0  # the inner bins hold what lies in them
    found = page(report, table, pool, truth, step=1200)
    assert "<h1>Hard negatives mined after step 1,200</h1>" in found and '<b class="down">2</b> of them (1.67%) are known' in found
    assert found.count("<svg") == 3 and found.count('class="false"') == sum(
        count > 0 for side in (negative, margin) for count in side.false_negatives or []
    )
    unknown = page(summarize(mined, pool, None, None), table, pool)
    assert "Which of them are false is not known" in unknown and 'class="false"' not in unknown and "after step" not in unknown


def test_a_cross_encoder_marks_what_it_takes_for_a_match() -> None:
    match_N, true_N = np.array([0.1, 0.5, 0.9]), np.array([True, False, False])
    assert marked_false(None, None) is None
    assert marked_false(None, match_N).tolist() == [False, True, True]  # type: ignore[union-attr]
    assert marked_false(true_N, match_N).tolist() == [True, True, True]  # type: ignore[union-attr]
    assert marked_false(true_N, None).tolist() == true_N.tolist()  # type: ignore[union-attr]


def test_rows_of_a_page_are_the_hardest_and_others_at_random(small_world: SmallWorld) -> None:
    table = mined_among(CaptionPool(load(small_world.manifest))).negatives
    hardest, random = example_rows(table)
    assert sorted(table.scores_N[hardest], reverse=True) == sorted(table.scores_N, reverse=True)[:10]
    assert len(set(hardest) | set(random)) == 20
    again, other = example_rows(table)[1], example_rows(replace(table, name="ff"))[1]
    assert again.tolist() == random.tolist() != other.tolist()


def test_a_page_of_nothing_and_of_pictures_that_do_not_decode(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path / "data")
    for picture in (tmp_path / "data" / "pictures").glob("train-*.png"):
        picture.write_bytes(b"no picture")
    pool = CaptionPool(load(manifest))
    mined = mined_among(pool)
    page = write_mining_report(tmp_path, summarize(mined, pool, None, None), mined.negatives, pool).read_text()
    assert page.count("no picture</span>") == 20
    nothing = replace(
        mined, negatives=replace(mined.negatives, offsets=np.zeros_like(mined.negatives.offsets), captions_N=np.empty(0, int))
    )
    empty = {name: getattr(mined.negatives, name)[:0] for name in ("ranks_N", "scores_N", "margins_N")}
    nothing = replace(nothing, negatives=replace(nothing.negatives, **empty), outcome_QK=np.zeros_like(mined.outcome_QK))
    report = summarize(nothing, pool, None, None)
    assert (report.num_mined, report.estimated_share, report.quantiles) == (0, None, {})
    assert "<article" not in write_mining_report(tmp_path, report, nothing.negatives, pool).read_text()


def test_a_killed_writers_leftovers_go_and_a_failed_write_leaves_neither(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = CaptionPool(load(small_world.manifest))
    mined = mined_among(pool)
    report = summarize(mined, pool, None, None)
    (tmp_path / ".0123abcd.html.99.tmp").write_text("half")
    age(tmp_path / ".0123abcd.html.99.tmp")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr("os.fsync", full)
        write_mining_report(tmp_path, report, mined.negatives, pool)
    assert list(tmp_path.iterdir()) == []


def test_the_report_for_a_terminal(small_world: SmallWorld) -> None:
    pool = CaptionPool(load(small_world.manifest))
    mined = mined_among(pool)
    lines = summarize(mined, pool, None, None).lines()
    assert lines[0].startswith("mined 120 negatives for 40 images (table 0123abcd)")
    assert [line.split()[0] for line in lines[-4:]] == ["logits", "positive", "negative", "margin"]
    assert all(len(line) < 160 for line in lines[1:])
    assert "none falls short" in lines
    assert "3 images fall short by 5 in all" in replace(summarize(mined, pool, None, None), num_short_images=3, shortfall=5).lines()


def test_the_image_of_a_row_is_looked_up_without_a_pass_over_the_table(small_world: SmallWorld, tmp_path: Path, monkeypatch) -> None:
    pool = CaptionPool(load(small_world.manifest))
    mined = mined_among(pool)
    report, images_N = summarize(mined, pool, None, None), mined.negatives.image_N
    monkeypatch.setattr(type(mined.negatives), "image_N", property(lambda table: pytest.fail("every row was listed for one")))
    page = write_mining_report(tmp_path, report, mined.negatives, pool).read_text(encoding="utf-8")
    shown = np.concatenate(example_rows(mined.negatives))
    assert all(pool.dataset.image_ids[image] in page for image in images_N[shown])

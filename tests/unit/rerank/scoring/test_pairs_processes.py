"""Two real processes over gloo score the same pairs to the same bits as one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rerank.scorers.load import load_scorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import complete_scores
from rerank.scoring.score_cache import ScoreCache

ROOT = Path(__file__).parents[4]
CAPTIONS = ["a dog", "the red cat", "a blue circle above a green square", "a cat sits on the dog", "the circle"]
IMAGES_N, CAPTIONS_N = np.array([0, 0, 0, 1, 2, 2, 2, 2]), np.array([0, 2, 4, 3, 0, 1, 2, 4])

PROCESS = """
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.execution import Execution
from eval.processes import Processes
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import complete_scores
from rerank.scoring.score_cache import ScoreCache
from rerank.scorers.load import load_scorer

folder, exchange, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{exchange}/meeting", rank=rank, world_size=2)
given = np.load(exchange / "given.npz")


class Files:
    image_ids = [str(i) for i in range(3)]
    caption_ids = captions = given["captions"].tolist()
    loaded = []

    def load_image(self, image):
        self.loaded.append(image)
        return Image.open(exchange / f"{image}.png")

    def image_digest(self, image):
        return hashlib.sha256((exchange / f"{image}.png").read_bytes()).digest()


dataset, scorer = Files(), load_scorer(str(folder), device="cpu")
cache = ScoreCache(exchange / f"cache-{rank}")  # a disk each
for step, (images_N, captions_N) in enumerate((("images_N", "captions_N"), ("more_images_N", "more_captions_N"))):
    lists = CandidateLists.of_pairs(given[images_N], given[captions_N])
    scores = complete_scores(scorer, dataset, lists, cache=cache, execution=Execution(processes=Processes.current()))
    cost = scores.cost
    np.savez(exchange / f"out-{step}-{rank}.npz", scores=scores.scores_N, keys=scores.lists.keys_N, loaded=dataset.loaded,
             cost=[cost.pairs_scored, cost.images_encoded])
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_the_bits_of_one(tiny_blip: Path, tmp_path: Path, noise, memory_set) -> None:
    more_images_N, more_captions_N = np.array([1, 1, 1]), np.array([0, 1, 3])  # one image only: a process has nothing to score
    np.savez(
        tmp_path / "given.npz",
        captions=CAPTIONS,
        images_N=IMAGES_N,
        captions_N=CAPTIONS_N,
        more_images_N=more_images_N,
        more_captions_N=more_captions_N,
    )
    for image in range(3):
        noise(image).save(tmp_path / f"{image}.png")
    command = [sys.executable, "-c", PROCESS, str(tiny_blip), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=240)
        if process.returncode:
            pytest.fail(errors)
    dataset, scorer = memory_set(3, CAPTIONS), load_scorer(str(tiny_blip), device="cpu")
    cache = ScoreCache(tmp_path / "cache-alone")
    asked, costs = [(IMAGES_N, CAPTIONS_N), (more_images_N, more_captions_N)], [[8, 3], [2, 1]]
    for step, (pairs, cost) in enumerate(zip(asked, costs, strict=True)):
        alone = complete_scores(scorer, dataset, CandidateLists.of_pairs(*pairs), cache=cache)
        outputs = [np.load(tmp_path / f"out-{step}-{rank}.npz") for rank in range(2)]
        for output in outputs:
            assert np.array_equal(output["keys"], alone.lists.keys_N)
            assert np.array_equal(output["scores"], alone.scores_N)
            assert output["cost"].tolist() == cost
    assert [output["loaded"].tolist() for output in outputs] == [[0, 2, 1], [1]]

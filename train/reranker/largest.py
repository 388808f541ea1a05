"""The largest batch that a tuning of a reranker can have, for the trial of its memory."""

import torch
from PIL import Image

from rerank.scorers.blip.checkpoint import MAX_TOKENS
from train.reranker.batches import MatchBatch, PairKind
from train.reranker.job import RerankerJob


def largest_batch(job: RerankerJob) -> MatchBatch:
    """This process's share of step 0, which there is not: every pair that is asked for, each hard image a picture of its own."""
    negatives, inputs = job.config.negatives, job.tuned.inputs
    share = job.config.train.batch_size // job.processes.world_size
    num_pictures, num_pairs = 1 + negatives.images_per_caption, 1 + negatives.num_wanted
    black = inputs.pixels(Image.new("RGB", (64, 64)))
    owners_N = torch.arange(share).repeat_interleave(num_pairs)
    # Of an image its true caption and hard captions, then its hard images.
    picture = [0] * (num_pairs - negatives.images_per_caption) + [*range(1, num_pictures)]
    kinds = [PairKind.TRUE, *[PairKind.HARD_CAPTION] * negatives.captions_per_image, *[PairKind.HARD_IMAGE] * negatives.images_per_caption]
    return MatchBatch(
        step=0,
        images_p=torch.arange(share * num_pictures) % job.train_set.num_images,
        pixels_p=black.expand(share * num_pictures, *black.shape).contiguous(),
        owners_N=owners_N,
        pictures_N=owners_N * num_pictures + torch.tensor(picture).repeat(share),
        captions_N=torch.zeros(share * num_pairs, dtype=torch.int64),
        kinds_N=torch.tensor([int(kind) for kind in kinds]).repeat(share),
        token_ids_NL=torch.full((share * num_pairs, MAX_TOKENS), inputs.pad_token_id),
        mask_NL=torch.ones(share * num_pairs, MAX_TOKENS, dtype=torch.int64),
        shortfall=0,
        undecodable=[],
    )

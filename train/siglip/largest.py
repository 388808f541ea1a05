"""The largest batch that a run of a job can have, for the trial of its memory."""

import numpy as np
import torch
from PIL import Image

from train.data.batches import Batch
from train.model.frozen_tower import cached_towers
from train.siglip.job import Job


def largest_batch(job: Job) -> Batch:
    """This process's share of step 0, which there is not: one black picture again and again, and all mined captions that there can be."""
    config, inputs, siglip = job.config, job.tuned.inputs, job.tuned.siglip
    share = config.train.batch_size // job.processes.world_size
    per_image, num_mined = config.train.captions_per_image, share * config.most_mined
    distil, cached = config.mining.distil if config.mining is not None else None, cached_towers(config)
    images_b = np.arange(share) % job.train_set.num_images
    black = inputs.pixels(Image.new("RGB", (inputs.image_size, inputs.image_size)))
    num_rows = 0 if "text" in cached else 1

    def token_ids(count: int) -> torch.Tensor:
        return torch.zeros(num_rows * count, inputs.num_tokens, dtype=torch.int64)

    return Batch(
        step=0,
        images_b=torch.from_numpy(images_b),
        captions_c=torch.from_numpy(np.asarray(job.train_set.caption_offsets)[images_b].astype(np.int64)).repeat_interleave(per_image),
        pixels_b=torch.empty(share, 0) if "image" in cached else black.expand(share, *black.shape).contiguous(),
        token_ids_cL=token_ids(share * per_image),
        mined_rows_m=torch.arange(num_mined) % share,
        mined_captions_m=torch.arange(num_mined) % len(job.pool),
        mined_token_ids_mL=token_ids(num_mined),
        undecodable=[],
        frozen_images_bD=torch.zeros(share, siglip.config.vision_config.hidden_size) if "image" in cached else None,
        frozen_texts_nD=torch.zeros(share * per_image + num_mined, siglip.text_model.head.out_features) if "text" in cached else None,
        teacher_logits_m=None if distil is None else torch.zeros(num_mined),
        teacher_logits_c=None if distil is None else torch.zeros(share * per_image),
    )

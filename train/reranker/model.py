"""The BLIP cross-encoder under training: what of it trains, how it scores pairs, and what a plain one of the same weights is."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import BlipForImageTextRetrieval, DynamicCache, EncoderDecoderCache

from eval.encoder.identity import Identity, identity_of
from eval.encoder.inputs import PictureBytes
from eval.errors import SettingError, named
from eval.processes import sent
from rerank.scorers.blip.checkpoint import BlipCheckpoint, load_blip
from rerank.scorers.supported import check_cross_encoder
from train.config.reranker import CrossEncoderConfig, RerankerLoopConfig, What
from train.engine.export_folder import plain_state
from train.model.siglip import add_lora
from train.optim.optimizer import Trainable, build_optimizer

Part = Literal["image", "text", "head"]
PAIR_BY_PAIR = ("cpu",)
"""Kinds of devices where keys and values of a picture are projected for each of its pairs: a CPU's runs keep their bits (tests/golden)."""
# The text tower's attention: to the words, and to the image.
_LORA_TARGET = r"text_encoder\.encoder\.layer\.\d+\.(attention|crossattention)\.(self\.(query|key|value)|output\.dense)"


@dataclass(frozen=True)
class MatchInputs:
    """Pictures and captions as the scorer of rerank/scorers/blip/scorer.py reads them: what is trained on is what is scored.

    Attributes:
        checkpoint: whose processors are used.
    """

    checkpoint: BlipCheckpoint

    @property
    def pad_token_id(self) -> int:
        """What fills a row of tokens up."""
        return int(self.checkpoint.tokenizer.pad_token_id)

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """Pixel values of one picture, float32 of shape (3, H, W)."""
        return self.checkpoint.image_processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    @cached_property
    def picture_bytes(self) -> PictureBytes:
        """The same in two steps: bytes, which a loader's worker sends, and the pixel values made of them."""
        return PictureBytes(self.checkpoint.image_processor)

    def token_ids(self, captions: list[str]) -> list[tuple[int, ...]]:
        """As `BlipCheckpoint.token_ids`."""
        return self.checkpoint.token_ids(captions)


@dataclass
class TunedCrossEncoder(Trainable):
    """A BLIP cross-encoder under training.

    Attributes:
        checkpoint: model and processors; adapters (if any) are inside the model.
        base_sha256: of the checkpoint it started from, processors and all.
        what: what of it trains.
        inputs: how it reads.
        base_identity: config and processors it started from.
    """

    checkpoint: BlipCheckpoint
    base_sha256: str
    what: What
    inputs: MatchInputs
    base_identity: Identity | None = None

    @property
    def module(self) -> BlipForImageTextRetrieval:
        """The model itself; what is run."""
        return self.checkpoint.model

    def begin(self) -> None:
        """Set up for a step: dropout in what trains, and in nothing else."""
        self.module.train()
        if self.what != "all":
            self.module.vision_model.eval()
        if self.what == "head":
            self.module.text_encoder.eval()

    def logits(
        self,
        pixels_p: torch.Tensor,
        pictures_N: torch.Tensor,
        token_ids_NL: torch.Tensor,
        mask_NL: torch.Tensor,
        autocast: Any = nullcontext,
    ) -> torch.Tensor:
        """Logits of (no match, match), float32 of shape (N, 2), as the scorer computes them; each picture goes through its tower and into
        the keys and values of cross-attention once.

        Args:
            pixels_p: float32 of shape (p, 3, H, W).
            pictures_N: int64, which of them each pair is of.
            token_ids_NL, mask_NL: int64; the mask in the host's memory, where it is known without a wait whether anything is padding.
            autocast: arithmetic of the towers.
        """
        with autocast():
            with self._graph(self.what == "all"):
                image_pTV = self.module.vision_model(pixel_values=pixels_p).last_hidden_state
            with self._graph(self.what != "head"):
                hidden_NLD = self.module.text_encoder(
                    input_ids=token_ids_NL,
                    attention_mask=self._additive_mask(mask_NL, image_pTV.device),
                    **self._pictures(image_pTV, pictures_N),
                ).last_hidden_state
        first_ND = hidden_NLD[:, 0]
        return self.module.itm_head(first_ND.to(torch.promote_types(first_ND.dtype, torch.float32)))

    def _additive_mask(self, mask_NL: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        """As transformers makes it of a mask, shape (N, 1, 1, L); None where nothing is padding."""
        if bool(mask_NL.all()):
            return None
        dtype = self.module.itm_head.weight.dtype
        return sent(torch.zeros(mask_NL.shape, dtype=dtype).masked_fill(mask_NL == 0, torch.finfo(dtype).min)[:, None, None], device)

    def _pictures(self, image_pTV: torch.Tensor, pictures_N: torch.Tensor) -> dict[str, Any]:
        """What the text tower reads of the pictures: as they are, with their keys and values once each; or one for each pair."""
        if image_pTV.device.type in PAIR_BY_PAIR:
            return {"encoder_hidden_states": image_pTV[pictures_N]}
        shared = _SharedPictures(self.module.text_encoder, image_pTV, pictures_N)
        return {"encoder_hidden_states": image_pTV, "past_key_values": shared}

    def _graph(self, trains: bool) -> AbstractContextManager[Any]:
        return nullcontext() if trains else torch.no_grad()

    def plain(self, device: torch.device | str = "cpu") -> BlipCheckpoint:
        """A checkpoint of a model of its own with the current weights, adapters merged: what would be exported."""
        with torch.device("meta"):
            model = BlipForImageTextRetrieval(copy.deepcopy(self.module.config))
        model = model.to_empty(device="cpu").float()
        model.load_state_dict({name: value.clone() for name, value in plain_state(self.module).items()}, assign=True)
        for name, buffer in model.named_buffers():  # those that no state holds, such as the numbers of the positions
            buffer.copy_(self.module.get_buffer(name))
        return replace(self.checkpoint, model=model.eval().to(device))


class _SharedPictures(EncoderDecoderCache):
    """Stands for the pictures in the text tower's cross-attention, whose keys and values are projected once a picture and not once a pair.

    transformers asks it for those of a layer when it is at that layer, so that no more than one layer's are in memory without gradients.
    """

    def __init__(self, text_encoder: Any, image_pTV: torch.Tensor, pictures_N: torch.Tensor) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        layers = [_SharedLayer(layer.crossattention.self, image_pTV, pictures_N) for layer in text_encoder.encoder.layer]
        self.cross_attention_cache = SimpleNamespace(layers=layers)
        self.self_attention_cache = SimpleNamespace(update=lambda keys, values, layer: (keys, values), get_seq_length=lambda *layer: 0)
        self.is_updated = dict.fromkeys(range(len(layers)), True)


@dataclass(frozen=True)
class _SharedLayer:
    attention: Any
    image_pTV: torch.Tensor
    pictures_N: torch.Tensor

    @property
    def keys(self) -> torch.Tensor:
        """Of each pair's picture, shape (N, H, T, E)."""
        return self._of_pairs(self.attention.key)

    @property
    def values(self) -> torch.Tensor:
        """As the keys."""
        return self._of_pairs(self.attention.value)

    def _of_pairs(self, projection: Any) -> torch.Tensor:
        states_pTHE = projection(self.image_pTV).unflatten(2, (self.attention.num_attention_heads, -1))
        return states_pTHE.index_select(0, self.pictures_N).transpose(1, 2)


def build_cross_encoder(config: CrossEncoderConfig, seed: int) -> TunedCrossEncoder:
    """Load the base and make ready what shall train.

    Args:
        seed: what the first weights of adapters are drawn from, the same on every process.

    Raises:
        UserError: the base is no BLIP cross-encoder, or an incomplete one.
    """
    with named({"reranker": "model.base"}):
        if (kind := check_cross_encoder(config.base)) != "blip":
            found = f"found {config.base!r}, of kind {kind!r}"
            raise SettingError("reranker", f"expected a BLIP cross-encoder (BlipForImageTextRetrieval); {found}")
        checkpoint = load_blip(config.base)
    identity = identity_of(checkpoint.model.config, checkpoint.image_processor, checkpoint.tokenizer, config.base)
    tuned = TunedCrossEncoder(checkpoint, checkpoint.digest(), config.what, MatchInputs(checkpoint), identity)
    model: Any = checkpoint.model
    # The projections of BLIP's contrastive loss have no part in matching: left to the optimizer they would only decay.
    model.requires_grad_(config.what == "all")
    model.vision_proj.requires_grad_(False)
    model.text_proj.requires_grad_(False)
    if config.adapters is not None:
        torch.manual_seed(seed)
        add_lora(model, config.adapters, _LORA_TARGET)
    model.itm_head.requires_grad_(True)
    return tuned


def part_of(name: str) -> Part:
    """Which part of the model a parameter belongs to, by its name."""
    if name.startswith("itm_head."):
        return "head"
    return "image" if name.startswith("vision_model.") else "text"


def make_cross_encoder_optimizer(tuned: TunedCrossEncoder, config: RerankerLoopConfig) -> torch.optim.AdamW:
    """AdamW over towers and head."""
    return build_optimizer(tuned, config, part_of, {"image": None, "text": None, "head": config.head_learning_rate})

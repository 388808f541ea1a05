"""A small ALBEF as it would be released: a .pth with momentum copies, queues and heads, and the folder of its tokenizer."""

import os
from pathlib import Path

import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "red", "blue", "dog", "cat", "circle", "square", "above", "runs", "well", "worn", "person", "##s", "s", "é"]
WIDTH, HEADS, PATCH, IMAGE, VISION_LAYERS, TEXT_LAYERS, FUSION_LAYER, POSITIONS = 128, 2, 8, 32, 2, 4, 2, 40
SIZES = {
    "vision_heads": HEADS,
    "vision_layers": VISION_LAYERS,
    "text_heads": HEADS,
    "text_layers": TEXT_LAYERS,
    "fusion_layer": FUSION_LAYER,
    "patch": PATCH,
}


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    return folder


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as in Salesforce's files."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, WIDTH),
        "visual_encoder.pos_embed": (1, (IMAGE // PATCH) ** 2 + 1, WIDTH),
        "visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "text_encoder.embeddings.word_embeddings.weight": (len(SPECIAL + WORDS), WIDTH),
        "text_encoder.embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "text_encoder.embeddings.token_type_embeddings.weight": (2, WIDTH),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)})

    for number in range(VISION_LAYERS):
        block = f"visual_encoder.blocks.{number}"
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
    norm("visual_encoder.norm")
    norm("text_encoder.embeddings.LayerNorm")
    for number in range(TEXT_LAYERS):
        layer = f"text_encoder.encoder.layer.{number}"
        for attention in ("attention", "crossattention")[: 1 + (number >= FUSION_LAYER)]:
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{layer}.{attention}.{part}", WIDTH, WIDTH)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", 2 * WIDTH, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, 2 * WIDTH)
        norm(f"{layer}.output.LayerNorm")
    linear("itm_head", 2, WIDTH)
    return shapes


def random_tensors() -> dict[str, torch.Tensor]:
    """Weights large enough that picture and caption both move the score."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if "norm" in name.lower() and name.endswith("weight"):
            return 1 + 0.1 * torch.randn(shape, generator=generator)
        scale = 0.1 if "pos" in name or len(shape) == 1 else 1.0 if "word" in name else 1.5 / shape[-1] ** 0.5
        return scale * torch.randn(shape, generator=generator)

    return {name: draw(name, shape) for name, shape in released_shapes().items()}


def released(tensors: dict[str, torch.Tensor], *, tuned: bool) -> dict:
    """What the .pth holds: of a model tuned for retrieval, or pre-trained only (other names, and a masked-language head)."""
    model = dict(tensors)
    if not tuned:
        model = {name.replace("text_encoder.", "text_encoder.bert."): tensor for name, tensor in model.items()}
        model["text_encoder.cls.predictions.bias"] = torch.zeros(3)
        model["text_encoder.bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
        model["text_encoder_m.cls.predictions.bias"] = torch.zeros(3)
    model |= {name.replace("encoder.", "encoder_m.", 1): tensor + 1 for name, tensor in model.items() if name.startswith("visual_encoder.")}
    model |= {"vision_proj.weight": torch.zeros(4, WIDTH), "text_proj_m.bias": torch.zeros(4), "temp": torch.tensor(0.07)}
    model |= {"image_queue": torch.zeros(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.long), "idx_queue": torch.zeros(1, 8)}
    return {"model": model, "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}}, "config": {"image_res": IMAGE}, "epoch": 4}


class Trap:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))

"""ALBEF's published code, imported from a checkout under today's transformers and without timm.

The code asks for names that transformers has moved or dropped since, and for a few classes of timm. What is missing is put in their place
before the import; the models' own computations are untouched.
"""

import importlib.util
import sys
import types
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.file_utils
import transformers.modeling_utils
import transformers.pytorch_utils
from torch import nn


class PatchEmbed(nn.Module):
    """As in timm of 2021: non-overlapping patches by one convolution, rows one after another."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class SlowTokenizer:
    """What ALBEF's tokenizer needs of the base class of transformers 4.8: special tokens, truncation, padding."""

    def __init__(self, **options: Any) -> None:
        for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
            setattr(self, name, options[name])
        self.all_special_tokens = [self.unk_token, self.sep_token, self.pad_token, self.cls_token, self.mask_token]

    @property
    def cls_token_id(self) -> int:
        return self._convert_token_to_id(self.cls_token)

    def __call__(self, texts: list[str], *, padding: str, truncation: bool, max_length: int, return_tensors: str) -> Any:
        """padding="max_length", truncation=True, as Retrieval.py calls it."""
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        rows = [[self._convert_token_to_id(token) for token in self._tokenize(text)] for text in texts]
        room = max_length - len(self.build_inputs_with_special_tokens([]))
        rows = [self.build_inputs_with_special_tokens(row[:room]) for row in rows]
        pad = self._convert_token_to_id(self.pad_token)
        input_ids = torch.tensor([row + [pad] * (max_length - len(row)) for row in rows])
        attention_mask = torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])
        return types.SimpleNamespace(input_ids=input_ids, attention_mask=attention_mask)


def _module(name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def _is_control(char: str) -> bool:
    return char not in "\t\n\r" and unicodedata.category(char).startswith("C")


def _is_whitespace(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_punctuation(char: str) -> bool:
    code = ord(char)
    return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126 or unicodedata.category(char).startswith("P")


def _put_in_place() -> None:
    """The names that the code imports and the installed libraries lack."""
    identity = {"_cfg": lambda **options: options, "PatchEmbed": PatchEmbed}
    for name in ("timm", "timm.models"):
        _module(name)
    _module("timm.models.vision_transformer", **identity)
    _module("timm.models.registry", register_model=lambda function: function)
    _module("timm.models.layers", trunc_normal_=nn.init.trunc_normal_, DropPath=nn.Identity)
    _module(
        "transformers.tokenization_utils",
        PreTrainedTokenizer=SlowTokenizer,
        _is_control=_is_control,
        _is_punctuation=_is_punctuation,
        _is_whitespace=_is_whitespace,
    )
    for name in ("vqaTools", "refTools", "refTools.evaluation"):
        _module(name)
    _module("vqaTools.vqaEval", VQAEval=None)
    _module("refTools.evaluation.refEvaluation", RefEvaluation=None)
    _module("utils")
    documented: Any = transformers.file_utils
    documented.add_code_sample_docstrings = lambda **options: lambda function: function
    moved: Any = transformers.modeling_utils
    for name in ("apply_chunking_to_forward", "prune_linear_layer"):
        setattr(moved, name, getattr(transformers.pytorch_utils, name))
    moved.find_pruneable_heads_and_indices = None  # called only to prune heads
    dropped: Any = transformers.PreTrainedModel
    dropped.get_head_mask = lambda model, head_mask, num_layers: [None] * num_layers
    dropped.invert_attention_mask = lambda model, mask: (1.0 - mask[:, None, None, :].to(torch.float32)) * -10000.0
    dropped.init_weights = lambda model: model.apply(model._init_weights)


def import_albef(checkout: Path) -> types.SimpleNamespace:
    """The published code's classes: VisionTransformer, BertModel, BertConfig, BertTokenizer, ALBEF, and pre_caption."""
    _put_in_place()
    sys.path.insert(0, str(checkout))
    from models.model_retrieval import ALBEF
    from models.tokenization_bert import BertTokenizer
    from models.vit import VisionTransformer
    from models.xbert import BertConfig, BertModel

    spec = importlib.util.spec_from_file_location("albef_dataset_utils", checkout / "dataset" / "utils.py")
    assert spec is not None and spec.loader is not None
    text = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(text)
    BertModel.from_pretrained = classmethod(lambda cls, name, config, **options: cls(config, **options))  # random weights, no download
    return types.SimpleNamespace(
        ALBEF=ALBEF,
        BertConfig=BertConfig,
        BertModel=BertModel,
        BertTokenizer=BertTokenizer,
        VisionTransformer=VisionTransformer,
        pre_caption=text.pre_caption,
    )

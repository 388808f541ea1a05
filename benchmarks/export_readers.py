"""Other tools reading an export, with their own packages alone: benchmarks/exports.py starts this file for each, in a new process.

    python -P benchmarks/export_readers.py TOOL EXPORT PAIRS OUT.npz

PAIRS holds captions.json and the pictures 0.png, 1.png, ...; OUT.npz gets `images` and `captions`, unit vectors, or `scores`, a row a
picture, and the versions of the packages in use. Each function is what a user of the tool would write.
"""

import json
import string
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

BATCH = 64


def unit(vectors):
    """Vectors divided by their lengths, float32."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batches(items):
    """Consecutive parts of a list."""
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def sentence_transformers(export, pictures, captions):
    """SentenceTransformer, captions and pictures in batches."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(export), device="cpu", trust_remote_code=False)
    return {"images": model.encode(pictures), "captions": model.encode(captions)}, ["sentence-transformers", "transformers"]


def transformers(export, pictures, captions, subfolder="", dtype="float32"):
    """SiglipModel and AutoProcessor, as the model card says."""
    import torch
    from transformers import AutoProcessor, SiglipModel

    model = SiglipModel.from_pretrained(export, subfolder=subfolder, dtype=getattr(torch, dtype), trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(export, subfolder=subfolder, trust_remote_code=False)
    length = model.config.text_config.max_position_embeddings
    found = {"images": [], "captions": []}
    with torch.no_grad():
        for part in batches(pictures):
            pixels = processor(images=part, return_tensors="pt")["pixel_values"].to(model.dtype)
            found["images"].append(pooled(model.get_image_features(pixel_values=pixels)))
        for part in batches(captions):
            ids = processor(text=part, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
            found["captions"].append(pooled(model.get_text_features(input_ids=ids)))
    return {side: np.concatenate(parts) for side, parts in found.items()}, ["transformers"]


def pooled(output):
    """The embedding in what get_..._features returns: in transformers 5 an output with names, in 4 the tensor itself."""
    return getattr(output, "pooler_output", output).float().numpy()


def transformers_bfloat16(export, pictures, captions):
    """The folder of bfloat16 weights, computed in bfloat16."""
    return transformers(export, pictures, captions, "bfloat16", "bfloat16")


def transformers_float16(export, pictures, captions):
    """The folder of float16 weights, computed in float16."""
    return transformers(export, pictures, captions, "float16", "float16")


def pipeline(export, pictures, captions):
    """transformers' pipeline, step by step: every different caption is a label of every picture.

    Called whole it pads to 64 tokens, whatever tokenizer_kwargs say (transformers 5.23), and a text tower of fewer refuses them.
    """
    from transformers import AutoConfig
    from transformers import pipeline as make

    length = AutoConfig.from_pretrained(export, trust_remote_code=False).text_config.max_position_embeddings
    classify = make("zero-shot-image-classification", model=str(export), device="cpu", trust_remote_code=False)
    labels, scores = list(dict.fromkeys(captions)), []
    for picture in pictures:
        inputs = classify.preprocess(picture, labels, "{}", tokenizer_kwargs={"max_length": length})
        found = {row["label"]: row["score"] for row in classify.postprocess(classify.forward(inputs))}
        scores.append([found[caption] for caption in captions])
    return {"scores": np.array(scores, dtype=np.float64)}, ["transformers"]


def onnxruntime(export, pictures, captions, suffix=""):
    """onnxruntime, Pillow and sentencepiece: all else is in the files' metadata."""
    import onnxruntime as runtime

    sessions = {tower: runtime.InferenceSession(export / "onnx" / f"{tower}_model{suffix}.onnx") for tower in ("vision", "text")}
    constants = sessions["text"].get_modelmeta().custom_metadata_map
    run = {
        tower: (lambda given, one=one: one.run(["pooler_output"], {one.get_inputs()[0].name: given})[0]) for tower, one in sessions.items()
    }
    return embedded(run, constants, export, pictures, captions), ["onnxruntime"]


def onnxruntime_fp16(export, pictures, captions):
    """The files in float16."""
    return onnxruntime(export, pictures, captions, "_fp16")


def onnxruntime_int8(export, pictures, captions):
    """The files in int8."""
    return onnxruntime(export, pictures, captions, "_quantized")


def openvino(export, pictures, captions):
    """OpenVINO, Pillow and sentencepiece, in float32."""
    import openvino as ov

    core, run = ov.Core(), {}
    for tower in ("vision", "text"):
        model = core.read_model(export / "openvino" / f"{tower}_model.xml")
        constants = {name: value.astype(str) for name, value in model.get_rt_info("siglip").astype(dict).items()}
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        run[tower] = lambda given, one=compiled: one(given)["pooler_output"]
    return embedded(run, constants, export, pictures, captions), ["openvino"]


def embedded(run, constants, export, pictures, captions):
    """Vectors of both towers, by the constants in their metadata."""
    import sentencepiece

    known = {
        name: json.loads(constants[name])
        for name in ("image_size", "image_mean", "image_std", "rescale_factor", "text_length", "pad_token_id")
    }
    size, length = known["image_size"], known["text_length"]
    pieces = sentencepiece.SentencePieceProcessor(str(export / "spiece.model"))
    pixels = [
        (
            np.asarray(picture.resize((size, size), Image.Resampling[constants["resample"].upper()]), np.float32) * known["rescale_factor"]
            - known["image_mean"]
        )
        / known["image_std"]
        for picture in pictures
    ]
    ids = []
    for caption in captions:
        plain = " ".join(caption.lower().translate(str.maketrans("", "", string.punctuation)).split())
        found = [*pieces.encode(plain), pieces.eos_id()]
        found = found if len(found) <= length else [*found[: length - 1], pieces.eos_id()]
        ids.append(found + [known["pad_token_id"]] * (length - len(found)))
    return {
        "images": np.concatenate([run["vision"](np.stack(part).transpose(0, 3, 1, 2).astype(np.float32)) for part in batches(pixels)]),
        "captions": np.concatenate([run["text"](np.array(part, dtype=np.int64)) for part in batches(ids)]),
    }


def open_clip(export, pictures, captions):
    """open_clip from its own folder: it finds timm's file below the working directory."""
    import os

    import torch

    if torch.version.cuda is None:
        declare_torchvision_operators(torch)
    import open_clip as library

    os.chdir(export / "open_clip")
    model, preprocess = library.create_model_from_pretrained("local-dir:.")
    tokenizer = library.get_tokenizer("local-dir:.")
    model.eval()
    with torch.no_grad():
        images = [model.encode_image(torch.stack([preprocess(picture) for picture in part])).numpy() for part in batches(pictures)]
        texts = [model.encode_text(tokenizer(part)).numpy() for part in batches(captions)]
    return {"images": np.concatenate(images), "captions": np.concatenate(texts)}, ["open_clip_torch", "timm"]


def declare_torchvision_operators(torch):
    """Let torchvision's wheel for CUDA be imported next to torch's build for CPUs, for which its own operators cannot be loaded.

    Its import looks for two of them, which its transforms do not use.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(operators)


KEPT = []
"""Libraries of operators, which last as long as their objects."""
TOOLS = {
    function.__name__: function
    for function in (
        sentence_transformers,
        transformers,
        transformers_bfloat16,
        transformers_float16,
        pipeline,
        onnxruntime,
        onnxruntime_fp16,
        onnxruntime_int8,
        openvino,
        open_clip,
    )
}


def main(tool, export, pairs, out):
    """Read an export with a tool, and write what it gives."""
    captions = json.loads((pairs / "captions.json").read_text(encoding="utf-8"))
    pictures = [Image.open(pairs / f"{number}.png").convert("RGB") for number in range(len(list(pairs.glob("*.png"))))]
    found, packages = TOOLS[tool](export.resolve(), pictures, captions)
    found = found if "scores" in found else {side: unit(vectors) for side, vectors in found.items()}
    ours = sorted({name.split(".")[0] for name in sys.modules} & {"eval", "rerank", "train"})
    assert not ours, ours
    np.savez(out, versions=[f"{name} {version(name)}" for name in packages], **found)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))

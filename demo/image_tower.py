"""The image tower: how BLIP's takes over the weights of a SigLIP's of the same width, depth and patch."""

import torch
from transformers import BlipForImageTextRetrieval, BlipProcessor, SiglipModel, SiglipProcessor


@torch.no_grad()
def adopt_image_tower(blip: BlipForImageTextRetrieval, words: BlipProcessor, siglip: SiglipModel, images: SiglipProcessor) -> None:
    """Copy SigLIP's image tower into BLIP's so that each patch begins with the features it had; the class token stays as it is.

    The two processors scale pixels differently: the patch embedding is rescaled to see the same picture.
    """
    theirs, ours = siglip.vision_model, blip.vision_model
    mean_C, std_C = (torch.tensor(values) for values in (words.image_processor.image_mean, words.image_processor.image_std))
    their_mean_C, their_std_C = (torch.tensor(values) for values in (images.image_processor.image_mean, images.image_processor.image_std))
    kernel_OCHW = theirs.embeddings.patch_embedding.weight
    ours.embeddings.patch_embedding.weight.copy_(kernel_OCHW * (std_C / their_std_C)[:, None, None])
    offset_O = (kernel_OCHW * ((mean_C - their_mean_C) / their_std_C)[:, None, None]).sum(dim=(1, 2, 3))
    ours.embeddings.patch_embedding.bias.copy_(theirs.embeddings.patch_embedding.bias + offset_O)
    ours.embeddings.position_embedding[0, 1:].copy_(theirs.embeddings.position_embedding.weight)
    ours.post_layernorm.load_state_dict(theirs.post_layernorm.state_dict())
    for their_layer, our_layer in zip(theirs.encoder.layers, ours.encoder.layers, strict=True):
        attention = their_layer.self_attn
        for kind in ("weight", "bias"):
            joined = torch.cat([getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
            getattr(our_layer.self_attn.qkv, kind).copy_(joined)
        our_layer.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2"):
            getattr(our_layer, name).load_state_dict(getattr(their_layer, name).state_dict())
        our_layer.mlp.load_state_dict(their_layer.mlp.state_dict())

"""The embedded default: drawn scenes, small SigLIP and BLIP checkpoints, and the scripts that made them."""

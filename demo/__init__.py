"""The embedded default: drawn scenes, two small checkpoints, and the scripts that made them all."""

"""Training: batches, loss, mining, the loop, checkpoints and export. Imports eval and rerank."""

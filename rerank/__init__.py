"""Reranking: score (image, caption) pairs with a cross-encoder and re-order the head of a first stage's ranking. Imports eval only."""

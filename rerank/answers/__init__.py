"""Retrieval and reranking without ground truth: a folder of images and a list of captions in, scores and ranks of both stages out."""

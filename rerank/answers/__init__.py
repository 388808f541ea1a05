"""Answers for people without ground truth: a folder of pictures and a list of captions in, both stages' scores and ranks out."""

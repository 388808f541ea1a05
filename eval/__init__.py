"""Evaluation: read data, embed, search, measure, compare and report. No gradients; imports nothing of the other packages."""

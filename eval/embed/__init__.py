"""Vectors of images and captions as files, for the indexes of others."""

"""Finished reports against one another: which run is better, by how much, and in which queries they differ."""

"""A page to search with: a sentence or a picture in, the first stage's and the reranked results side by side out."""

"""Additional views of captions and images: the user's own texts, templates, dictionaries, language models, crops and flips."""

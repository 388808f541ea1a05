"""Where further views of captions and pictures come from: the user's own, templates, dictionaries, models, crops and flips."""

"""What libraries say of themselves, and nobody can act on, is not said."""

import warnings


def quieten() -> None:
    """Silence transformers' notices and bars, and Python's word on forking beside threads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # workers touch no thread of their parent's

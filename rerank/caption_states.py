"""What a text tower made of captions, kept from image to image within a bound.

Shape letters: L tokens of a caption, D width.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch


class CaptionStates:
    """The states of the captions that were asked for last, up to so many bytes; what was pushed out is computed again.

    Each caption is computed by itself, so that its state is the same bits whatever else was asked for before or with it:
    a scoring that is shared out over processes, or taken up again, gives the same scores.
    """

    def __init__(self, encode: Callable[[tuple[int, ...]], torch.Tensor], max_bytes: int) -> None:
        """Keeps nothing yet.

        Args:
            encode: token ids of one caption to its state, shape (L, D).
            max_bytes: of the states that are kept; one larger than that is not kept at all.
        """
        self._encode = encode
        self._max_bytes = max_bytes
        self._states: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self.num_bytes = 0

    def of(self, ids: tuple[int, ...]) -> torch.Tensor:
        """The state of a caption, shape (L, D)."""
        state_LD = self._states.get(ids)
        if state_LD is not None:
            self._states.move_to_end(ids)
            return state_LD
        state_LD = self._encode(ids)
        self._states[ids] = state_LD
        self.num_bytes += state_LD.nbytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._states.popitem(last=False)[1].nbytes
        return state_LD

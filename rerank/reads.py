"""What a cross-encoder can read of a picture and of a caption."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """The most a scorer sees of a pair; what is beyond is lost to it.

    Attributes:
        image_height, image_width: pixels that pictures are brought to; 0 where they keep their own size.
        max_tokens: tokens that captions are cut to, special ones included.
    """

    image_height: int
    image_width: int
    max_tokens: int

    def __str__(self) -> str:
        """In words: "pictures at 384 x 384 pixels, captions of up to 35 tokens"."""
        pictures = f"at {self.image_height} x {self.image_width} pixels" if self.image_height else "at their own size"
        return f"pictures {pictures}, captions of up to {self.max_tokens} tokens"

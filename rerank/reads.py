"""What a cross-encoder can read of a picture and of a caption."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """The most a scorer sees of a pair; what is beyond is lost to it.

    Attributes:
        image_height, image_width: pixels that pictures are brought to; 0 where they keep their own size.
        max_tokens: tokens that captions are cut to, special ones included.
        keeps_aspect: pictures keep their aspect ratio; the height and width above are of a square one, and say the shorter side of any.
    """

    image_height: int
    image_width: int
    max_tokens: int
    keeps_aspect: bool = False

    def __str__(self) -> str:
        """In words: "pictures at 384 x 384 pixels, captions of up to 35 tokens"."""
        if self.keeps_aspect:
            pictures = f"with a shorter side of {self.image_height} pixels"
        else:
            pictures = f"at {self.image_height} x {self.image_width} pixels" if self.image_height else "at their own size"
        return f"pictures {pictures}, captions of up to {self.max_tokens} tokens"

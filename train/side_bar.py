"""A progress bar for what happens between steps: an evaluation, a mining."""

from collections.abc import Callable

from eval.progress import bar


class SideBar:
    """A progress bar for what happens between steps; each advance also looks for a signal."""

    def __init__(self, text: str, total: int, show: bool, check: Callable[[], None], unit: str = "row") -> None:
        self._bar = bar(total, text, unit, show=show, leave=False)
        self._check = check

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _advance(self, rows: int) -> None:
        self._bar.update(rows)
        self._check()

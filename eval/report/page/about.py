"""What a report's page says of where its figures come from: the run, the command, its files. Whoever measures knows; the page shows it."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PATH = re.compile(r"(?<![\w.:/])/[^\s,\[\]{}'\"]+")
"""An absolute path within a list."""
_SECRET = re.compile(r"(^|[._-])(token|secret|password|passwd|key)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class About:
    """Where the figures of a report come from.

    Attributes:
        title: of the page: the run's name.
        pair: (stage, against) that the page answers; None: the first that is compared.
        words: what the step from one stage to another is called, "Tuning", by (stage, against).
        chosen: of each stage, what of it was chosen on which split.
        warnings: sentences for the first screen.
        command: what made the report.
        curves: a picture of the training, .png; None: there is none.
        links: (words, path) of files and folders that belong to it.
    """

    title: str = "Retrieval report"
    pair: tuple[str, str] | None = None
    words: Mapping[tuple[str, str], str] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    command: str = ""
    curves: Path | None = None
    links: Sequence[tuple[str, Path]] = ()


def about_command(model: str) -> About:
    """Of a command that measures a checkpoint: its name, and the command; of a folder of this machine, the last two names.

    >>> about_command("runs/demo/export").title, about_command("/somewhere/else/demo/export").title
    ('runs/demo/export', 'demo/export')
    """
    shown = _shown_path(model)
    return About(title="/".join(Path(model).parts[-2:]) if shown.startswith("...") else shown, command=shown_command())


def shown_command() -> str:
    """The command line of this process, for a shell; a folder of this machine is cut to its name, and what is called a token, a secret, a
    password or a key is left out."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = ["python", "-m", spec.name.removesuffix(".__main__")] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join([*program, *shown_arguments(sys.argv[1:])])


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments without secrets and without folders of this machine.

    >>> shown_arguments(["--data", "/somewhere/else/pairs.csv", "--hub-token", "x", "a.key=y", "train.max_steps=3"])
    ['--data', '.../pairs.csv', '--hub-token', '***', 'a.key=***', 'train.max_steps=3']
    >>> shown_arguments(["--hub-token=abc==", "a.token=x=y", "--data=/somewhere/else/a=b.csv", "choices=[/somewhere/else/a.csv, A/B]"])
    ['--hub-token=***', 'a.token=***', '--data=.../a=b.csv', 'choices=[.../a.csv, A/B]']
    """
    found, hides = list[str](), False
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if hides:
            argument = "***"
        elif mark:
            argument = f"{name}={'***' if _SECRET.search(name) else _shown_path(value)}"
        else:
            argument = _shown_path(argument)
        found.append(argument)
        hides = not mark and not hides and argument.startswith("--") and _SECRET.search(argument) is not None
    return found


def _shown_path(text: str) -> str:
    """A text whose absolute paths, itself or within a list, are as seen from the folder of the call, or cut to their names."""
    return _PATH.sub(lambda found: _cut(found[0]), text) if not os.path.isabs(text) else _cut(text)


def _cut(path: str) -> str:
    relative = os.path.relpath(path)
    return f".../{Path(path).name}" if relative.startswith("..") else relative

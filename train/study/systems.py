"""The systems of a study: one configuration each, given as changes of a common one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.errors import UserError
from train.config.job import JobConfig
from train.config.load import load_config, load_run_config, read_record
from train.config.mining import PRESETS as MINING_PRESETS
from train.config.reranker import RerankerConfig, is_reranker

PLAIN = "plain"
PRESETS = {
    PLAIN: ["mining=null"],
    **{name: [f"mining={name}"] for name in MINING_PRESETS},
    "two-captions": ["mining=null", "train.captions_per_image=2"],
}
"""What is tried where no system is given. None of the mined ones is measured to help (results/study/heads.md)."""
_OPEN, _CLOSE = "[{(", ")}]"


@dataclass(frozen=True)
class System:
    """A name, and the overrides of the common configuration that make it what it is."""

    name: str
    overrides: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "System":
        """`NAME=key=value,key=value`; commas within brackets belong to a value.

        Raises:
            UserError: it has no name or no change.
        """
        name, separator, changes = text.partition("=")
        overrides = tuple(part.strip() for part in _split(changes))
        if not separator or not name.strip() or not all("=" in override for override in overrides):
            raise UserError(
                f"--system {text!r:.200}: expected NAME=key.path=value,key.path=value, for example "
                "mined=mining.weight=0.1,mining.negatives_per_image=4"
            )
        return cls(name.strip(), overrides)


def _split(text: str) -> list[str]:
    """A text at its commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def parse_systems(texts: Sequence[str]) -> dict[str, list[str]]:
    """The changes of each system, of the texts of --system.

    Raises:
        UserError: a text is none of a system, or two have one name.
    """
    systems = [System.parse(text) for text in texts]
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise UserError(f"--system: each needs a name of its own, found {names}")
    return {system.name: list(system.overrides) for system in systems}


def load_system(config: str, overrides: Sequence[str]) -> JobConfig | RerankerConfig:
    """The configuration of a system, of the kind that the file describes.

    Raises:
        UserError: with every fault.
    """
    return load_run_config(RerankerConfig, config, overrides) if is_reranker(read_record(config)) else load_config(config, overrides)


def check_systems(systems: Mapping[str, Sequence[str]], config: str, overrides: Sequence[str]) -> list[JobConfig | RerankerConfig]:
    """The configuration of each system; the first is the one that the others are compared with.

    Raises:
        UserError: with every fault of every system.
    """
    if len(systems) < 2:
        raise UserError(f"a study compares two systems or more, found {list(systems)}; the first is what the others are compared with")
    configs, faults = [], []
    for name, changes in systems.items():
        try:
            configs.append(load_system(config, [*overrides, *changes, f"name={name}"]))
        except UserError as error:
            faults.append(f"system {name!r}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    for name, job in zip(systems, configs, strict=True):
        if job.data.test_split is None and job.data.val_split is None:
            raise UserError(f"system {name!r}: there is nothing to measure on; a study needs data.test_split or data.val_split")
    return configs

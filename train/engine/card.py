"""What the model card of every export has, whatever was trained: the metadata that the hub reads, names in the place of paths, the base's
licence, the recipe, and the figures of the final report.

A card leaves the machine that it was written on. So it names a model or data set of the hub by its id, and what lies in a folder or file
by that one's name and a hash of its content.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, constants

from eval.encoder.hub import HubModel, model_folder, revision_in_use, without_revision
from eval.errors import UserError
from eval.files import CONFIG_BYTES, read_bytes
from eval.manifest.formats.hub import HubId, data_revision
from eval.report.render import DIRECTION_WORDS, show, show_interval
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS
from train.config.run import RunConfig
from train.config.yaml_text import YamlFault, parse_yaml
from train.engine.checkpoint import State
from train.engine.folder import learnt

CARD = "README.md"
HERE = 'name = "."  # this folder'
"""The line of a card's examples that says where the model is; a card that is sent to the hub names its repository there."""
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_RECALLS = ("R@1", "R@5")


def shown_name(name: str) -> str:
    """A model by its hub id, or by the name of its folder: an export's is that of its run, a checkpoint's that of its run and step.

    >>> shown_name("google/siglip-base-patch16-224"), shown_name("/data/runs/birds/export"), shown_name("../birds/checkpoints/step-40")
    ('google/siglip-base-patch16-224', 'birds', 'birds, step 40')
    """
    if HubModel.parse(name) is not None and "/" in name and not os.path.exists(name.partition("@")[0]):
        return name
    path = Path(os.path.abspath(name))
    if path.name.startswith("step-") and path.parent.name == "checkpoints":
        return f"{path.parents[1].name}, step {path.name.removeprefix('step-')}"
    return path.parent.name if path.name == "export" else path.name


def model_words(name: str, sha256: str) -> str:
    """A model as a card's text names it, with its commit of the hub, and the hash of its weights."""
    commit = revision_in_use(name)
    return f"`{shown_name(name)}{'' if commit is None else f' (commit {commit} of the hub)'}` (weights {sha256[:16]})"


def data_words(source: str, sha256: str, commit: str | None = None) -> str:
    """A data set as a card's text names it: by its id and commit of the hub, or its file's name, and a hash of what was read of it."""
    commit = commit or data_revision(source)
    return f"`{data_name(source, commit)}`{'' if commit is None else f' (commit {commit} of the hub)'} (sha256 {sha256[:16]})"


def commit_of(report: Mapping[str, Any] | None) -> str | None:
    """The commit of the hub that a report's data were read at; None: it is not known, or they are no data set of the hub."""
    return None if report is None else report["data"].get("revision")


def data_name(source: str, commit: str | None = None) -> str:
    """The id of a data set of the hub, or the name of a file or folder."""
    return source if hub_data(source, commit) is not None else Path(os.path.abspath(source)).name


def hub_data(source: str, commit: str | None = None) -> HubId | None:
    """The data set of the hub that a source names; None: it is a file or folder, or was one: a path of two parts looks like an id.

    So it has to have been read from the hub: at a commit that is known, or earlier into the hub's cache here.

    Args:
        commit: that a report says it was read at.
    """
    found = None if os.path.exists(source) else HubId.parse(source)
    if found is None or (commit or data_revision(source)) is not None:
        return found
    return found if Path(constants.HF_HUB_CACHE, f"datasets--{found.name.replace('/', '--')}").is_dir() else None


@dataclass(frozen=True)
class Base:
    """What a card says of the model that weights came from.

    Attributes:
        hub_ids: of the hub; of one that is not there, those its own card names as its base.
        licence: keys `license`, `license_name`, `license_link` of its card; empty: it has no card here, or names none.
    """

    hub_ids: tuple[str, ...]
    licence: Mapping[str, str]

    @classmethod
    def of(cls, name: str | None) -> "Base":
        """Of a folder or hub id whose files are here already; nothing is fetched for it. None: random weights."""
        if name is None:
            return cls((), {})
        is_local = os.path.isdir(name)
        try:
            front = front_matter(model_folder(name) / CARD)
        except UserError:  # gone meanwhile
            front = {}
        licence = {key: front[key] for key in ("license", "license_name", "license_link") if _is_word(front.get(key))}
        named = front.get("base_model")
        inherited = [one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str) and HubModel.parse(one)]
        return cls(tuple(inherited) if is_local else (without_revision(name),), licence)

    @classmethod
    def of_all(cls, names: Iterable[str]) -> "Base":
        """Of several, each base once; a licence only where all have the same."""
        found = [cls.of(name) for name in names]
        licences = [dict(one.licence) for one in found]
        same = licences[0] if licences and all(licence == licences[0] for licence in licences) else {}
        return cls(tuple(dict.fromkeys(hub_id for one in found for hub_id in one.hub_ids)), same)

    def line(self) -> str:
        """What is known of the licence, a line of the card."""
        name = self.licence.get("license_name") or self.licence.get("license")
        if name:
            return f"- Licence: `{name}`, that of the base; whoever publishes the weights checks that their data allow it.\n"
        return "- Licence: not known, for no card of the base is here that names one. Look at the base's page before you publish.\n"


def _is_word(value: Any) -> bool:
    """Whether a value of somebody's card is a licence's name or address, and nothing that would be read as Markdown."""
    return isinstance(value, str) and re.fullmatch(r"[\w.+:/#?&=-]{1,200}", value) is not None


def front_matter(path: Path) -> dict[str, Any]:
    """The metadata at the beginning of a card; empty: there is no card, or none that can be read."""
    try:
        found = _FRONT.match(read_bytes(path, CONFIG_BYTES).decode("utf-8"))
        front = parse_yaml(found[1]) if found is not None else None
    except (OSError, UnicodeDecodeError, YamlFault):
        return {}
    return front if isinstance(front, dict) else {}


def metadata(
    name: str,
    base: Base,
    *,
    pipeline: str,
    tags: Sequence[str],
    source: str | None = None,
    results: Sequence[EvalResult] = (),
    language: Sequence[str] = (),
    commit: str | None = None,
) -> str:
    """The beginning of a card that the hub reads, with both lines of dashes.

    Args:
        name: of the model, in the index of its results.
        pipeline: the hub's name of the task.
        source: of the data; named where they are of the hub.
        results: for the index.
        language: codes of the captions' languages.
        commit: of the data, where it is known.
    """
    hub_id = hub_data(source, commit) if source is not None else None
    asked: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": list(tags), **base.licence}
    if base.hub_ids:
        asked |= {"base_model": base.hub_ids[0] if len(base.hub_ids) == 1 else list(base.hub_ids), "base_model_relation": "finetune"}
    if language:
        asked["language"] = list(language)
    if hub_id is not None:
        asked["datasets"] = [hub_id.name]
    if results:
        asked |= {"model_name": name, "eval_results": list(results)}
    return f"---\n{ModelCardData(**asked).to_yaml()}\n---\n\n"


def recipe(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what is learnt, with their values; a path is cut to the name it ends in."""
    return {key: _without_path(value) for key, value in learnt(config).items()}


def _without_path(value: Any) -> Any:
    if isinstance(value, str):
        return shown_name(value) if os.path.isabs(value) or os.path.exists(value) else value
    if isinstance(value, dict):
        return {key: _without_path(inner) for key, inner in value.items()}
    return [_without_path(inner) for inner in value] if isinstance(value, list) else value


def no_gain(state: State, step: int, begun_at: str | None = None) -> str:
    """The sentence to begin with where no checkpoint beat what the run started from on val; empty: one did, or nothing was evaluated.

    Args:
        state: of the newest checkpoint.
        step: of the checkpoint that is exported.
        begun_at: train.begin_at.
    """
    if state.best_score is None or state.best_step != 0:
        return ""
    start = "its base" if begun_at is None else "the checkpoint it began at"
    held = "the weights that it began with" if step == 0 else f"the weights of step {step} all the same"
    return f"No checkpoint of this run beat {start} on val (mean R@1 {100 * state.best_score:.2f}); the export holds {held}."


NO_GAIN = SectionFormat(key="no_gain", warnings=lambda record: [record["note"]])
"""The section of a report that begins with `no_gain`."""


def no_gain_sections(sentence: str) -> list[Section]:
    """The section of a report on a run that won nothing; none for one that did."""
    return [Section(NO_GAIN, {"note": sentence})] if sentence else []


def result_lines(report: Mapping[str, Any], stages: Sequence[str]) -> str:
    """Recalls of a report's stages as a table of Markdown, and what they differ by, with 95% intervals.

    Args:
        report: the record of report.json.
        stages: which, in order; those that the report does not have are left out.
    """
    data, found = report["data"], [stage for stage in stages if stage in report["stages"]]
    lines = [
        f"On {data_words(data['source'], data['sha256'], data.get('revision'))}, split `{data['split']}`: {data['num_images']:,} images, "
        f"{data['num_captions']:,} captions. Recall in percent [95% interval, bootstrap over images].\n",
        "| stage | direction | " + " | ".join(_RECALLS) + " |",
        "|---|---|---|---|",
    ]
    for stage in found:
        for direction in DIRECTIONS:
            values = report["stages"][stage][direction]
            cells = [f"{show(name, values[name])} {_bounds(values['ci95'][name])}" for name in _RECALLS]
            lines.append(f"| {stage} | {DIRECTION_WORDS[direction]} | {' | '.join(cells)} |")
    rows = [
        f"| {row['stage']} against {row['against']} | {100 * row['delta']:+.2f} | {show_interval(row['ci95'])} | {row['verdict']} |"
        for row in report.get("comparisons", ())
        if row["metric"] == "R@1" and row["direction"] == "both" and row["stage"] in found and row["against"] in found
    ]
    if rows:
        lines += ["", "| mean R@1 of both directions | difference, points | paired 95% interval | verdict |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _bounds(ci95: Sequence[float]) -> str:
    low, high = (f"{100 * bound:.2f}" for bound in ci95)
    return f"[{low}, {high}]"


def index_results(report: Mapping[str, Any], stage: str) -> list[EvalResult]:
    """A stage's recalls for the hub's index of results, percent, each with its interval."""
    data = report["data"]
    hub_id, name = hub_data(data["source"], data.get("revision")), data_name(data["source"], data.get("revision"))
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=hub_id.name if hub_id is not None else name,
            dataset_name=f"{name} ({data['num_images']:,} images, {data['num_captions']:,} captions; sha256 {data['sha256'][:16]})",
            dataset_config=hub_id.config if hub_id is not None else None,
            dataset_revision=data.get("revision"),
            dataset_split=data["split"],
            metric_type=metric.lower().replace("r@", "recall_at_"),
            metric_name=f"{DIRECTION_WORDS[direction]} {metric}",
            metric_value=round(100 * report["stages"][stage][direction][metric], 2),
            metric_args={"ci95": [round(100 * bound, 2) for bound in report["stages"][stage][direction]["ci95"][metric]]},
        )
        for direction in DIRECTIONS
        for metric in _RECALLS
    ]

"""A soup: the mean of the weights of several checkpoints of one architecture, exported as one model with the cost of one.

    python -m train.soup CHECKPOINT CHECKPOINT... --output DIR [--greedy] [--data MANIFEST --split val]

A CHECKPOINT is a folder, a hub id, RUN_FOLDER (its best checkpoint) or RUN_FOLDER@STEP. Writes DIR/soup.json, DIR/export and, where it
measures, DIR/soup.parquet (a row a query of every ingredient and every trial). Source: Wortsman et al. 2022, arXiv 2203.05482.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.atomic import check_writable, contents
from eval.command import run_command
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import COLUMNS, read_manifest
from eval.process_group import use_exact_float32
from train.config.run import DataConfig
from train.engine.folder import check_replaceable
from train.siglip.export import export_model
from train.siglip.model_rows import write_results
from train.soup.average import Trial, greedy
from train.soup.evaluation import SOUP, SoupStages, stage_name, trial_name
from train.soup.ingredients import Ingredient, read_ingredients
from train.soup.record import make_record, soup_card


def run(names: Sequence[str], output: Path, *, is_greedy: bool, data: DataConfig | None, num_workers: int = 2) -> dict[str, Any]:
    """Measure, choose, average, export; what soup.json holds.

    Args:
        data: the split `val_split` of this; None: that of the ingredients' runs for a greedy soup, and no measuring for a uniform one.

    Raises:
        UserError: ingredients, data or output cannot be used.
        OSError: something cannot be written.
    """
    use_exact_float32()
    ingredients = read_ingredients(names)
    check_output(output, ingredients)
    data = common_data(ingredients) if data is None and is_greedy else data
    output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    dataset = None
    if data is not None:
        wanted = [data.val_split] if data.val_split is not None else []
        manifest = read_manifest(data.source, image_root=data.image_root, columns=data.columns, require_splits=wanted)
        dataset = load_split(manifest, data.val_split)
    stages = SoupStages(ingredients, dataset, num_workers)
    alone = []
    if dataset is not None:
        alone = [stages.measure(stage_name(index), stages.load(index)) for index in range(len(ingredients))]
    members, trials, stage = tuple(range(len(ingredients))), list[Trial](), SOUP
    if is_greedy:
        members, trials = greedy(alone, lambda members: stages.measure(trial_name(members[-1]), stages.soup_of(members)))
        stage = trial_name(members[-1]) if len(members) > 1 else stage_name(members[0])
    soup = stages.soup_of(members)
    if alone and stage not in stages.tables:
        stages.measure(stage, soup)
    record = make_record(stages, alone, members, trials, is_greedy=is_greedy, stage=stage, sha256=soup.base_sha256)
    if not stages.tables:
        (output / "soup.parquet").unlink(missing_ok=True)  # of an earlier soup, and not of this one
    write_results(output / "soup.json", record, {"soup": pa.concat_tables(stages.tables.values())} if stages.tables else {})
    export_model(soup, output / "export", soup_card(record))
    return record


def check_output(output: Path, ingredients: Sequence[Ingredient]) -> None:
    """Refuse an output folder whose contents a soup would destroy.

    Raises:
        UserError: it is a run or a checkpoint, holds another's export, or an ingredient lies where the export goes.
    """
    if found := [name for name in ("config.yaml", "config.json", "checkpoints") if (output / name).exists()]:
        raise UserError(f"{output} holds {found[0]}: it is a run or a checkpoint, not a folder for a soup; give --output a new folder")
    export = output / "export"
    check_replaceable(export)
    if taken := [ingredient.name for ingredient in ingredients if ingredient.folder == export.resolve()]:
        raise UserError(f"{taken[0]} lies where the soup would be written ({export}); give --output another folder")
    check_writable(output / "soup.json", output / "soup.parquet")
    if export.is_dir() and contents(export) and not (output / "soup.json").is_file():
        raise UserError(f"{export} is there, and {output / 'soup.json'} is not: it is no earlier soup; give --output a new folder")


def common_data(ingredients: Sequence[Ingredient]) -> DataConfig:
    """The data of the runs that all ingredients come from.

    Raises:
        UserError: some come from no run, or from runs with other data or without val.
    """
    remedy = "name the data to choose on: --data MANIFEST --split val"
    if outside := [ingredient.name for ingredient in ingredients if ingredient.run is None]:
        raise UserError(f"--greedy chooses on val, and {outside[0]} is no run that says what its val is; {remedy}")
    asked = [ingredient.run[0].data for ingredient in ingredients if ingredient.run is not None]
    keys = ("source", "image_root", "columns", "val_split")
    for ingredient, data in zip(ingredients, asked, strict=True):
        if differing := [key for key in keys if getattr(data, key) != getattr(asked[0], key)]:
            raise UserError(f"{ingredients[0].name} and {ingredient.name} have other data (data.{differing[0]}); {remedy}")
    if asked[0].val_split is None:
        raise UserError(f"{ingredients[0].name}: data.val_split is null; {remedy}")
    return asked[0]


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.soup", description="Average the weights of checkpoints of one architecture.")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder, hub id, RUN_FOLDER (its best) or RUN_FOLDER@STEP")
    parser.add_argument("--output", type=Path, required=True, help="folder to write: soup.json, soup.parquet and export/")
    parser.add_argument("--greedy", action="store_true", help="keep only those that do not lower mean R@1 on the data, the best first")
    parser.add_argument("--data", help="manifest to measure on (default with --greedy: val of the runs, if all have the same)")
    parser.add_argument("--split", help="rows to measure on; needed where the manifest has splits. Not the one you report")
    parser.add_argument("--image-root", help="folder that image paths are relative to (default: the manifest's)")
    parser.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help=f"name of a column in the manifest; ours: {', '.join(COLUMNS)}"
    )
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    asked = parser.parse_args(arguments)
    if bad := [pair for pair in asked.column if "=" not in pair]:
        parser.error(f"--column takes OURS=THEIRS, found {bad}")
    if asked.data is None and (asked.split or asked.image_root or asked.column):
        parser.error("--split, --image-root and --column say how to read --data, which is not given")
    if asked.num_workers < 0:
        parser.error("--num-workers is at least 0")
    return asked


def _show(record: dict[str, Any], output: Path) -> None:
    soup = record["soup"]
    for row in record["ingredients"] if "data" in record else ():
        print(f"alone    mean R@1 {100 * row['mean_R@1']:6.2f}  {row['name']}")
    for trial in record.get("trials", ()):
        verdict = "kept" if trial["kept"] else "left out"
        print(f"trial    mean R@1 {100 * trial['before']:6.2f} -> {100 * trial['mean_R@1']:6.2f}  with {trial['ingredient']}: {verdict}")
    if "data" in record:
        low, high = (100 * bound for bound in soup["delta_ci95"])
        against = f"against {soup['against']} {100 * soup['delta']:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"soup     mean R@1 {100 * soup['mean_R@1']:6.2f}  {against}")
    print(f"export   {output}/export: the {record['kind']} soup of {len(soup['members'])} of {len(record['ingredients'])} checkpoints")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked, data = _parse(arguments), None
    if asked.data is not None:
        columns = dict(pair.split("=", 1) for pair in asked.column)
        data = DataConfig(source=asked.data, image_root=asked.image_root, columns=columns, val_split=asked.split)
    make = partial(run, asked.checkpoints, asked.output, is_greedy=asked.greedy, data=data, num_workers=asked.num_workers)
    return run_command(lambda: _show(make(), asked.output), writes=[asked.output / "soup.json", asked.output / "export"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

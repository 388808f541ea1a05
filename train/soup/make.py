"""A soup made: its ingredients measured, chosen, averaged and exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.atomic import check_writable, contents
from eval.dataset.broken import without_broken
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.manifest import RowRules, read_manifest
from eval.process_group import use_exact_float32
from train.config.run import DataConfig
from train.data.splits import SplitMaker
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
        rules = RowRules(skip_missing=data.skip_missing, divide=SplitMaker(data).divide)
        manifest = read_manifest(data.source, image_root=data.image_root, columns=data.columns, require_splits=wanted, rules=rules)
        if data.skip_broken:
            manifest = without_broken(manifest, [data.val_split], Execution(num_workers=num_workers))
        print("".join(f"{line}\n" for line in manifest.lines()), end="", flush=True)
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
    export_model(soup, output / "export", soup_card(record, ingredients, soup.inputs))
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
    keys = ("source", "image_root", "columns", "split", "val_split")
    for ingredient, data in zip(ingredients, asked, strict=True):
        if differing := [key for key in keys if getattr(data, key) != getattr(asked[0], key)]:
            raise UserError(f"{ingredients[0].name} and {ingredient.name} have other data (data.{differing[0]}); {remedy}")
    if asked[0].val_split is None:
        raise UserError(f"{ingredients[0].name}: data.val_split is null; {remedy}")
    return asked[0]

"""A study from its protocol to its page: screening, the runs, the controls at equal compute, the comparisons."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.atomic import replace_files
from eval.errors import UserError
from train.config.job import JobConfig
from train.config.reranker import RerankerConfig
from train.config.run import SplitConfig
from train.config.sizes import DataSizes
from train.data.splits import load_data
from train.reranker.job import load_reranker_data
from train.study.comparison import Results, compare_systems, figures
from train.study.cost import TowerCost, flops
from train.study.page import answer, page
from train.study.runs import Planned, Result, carry_out
from train.study.systems import System, load_system

_SPREAD = 0.05
"""Costs that differ by a smaller share than this are equal."""


@dataclass(kw_only=True)
class Study:
    """A study under way.

    Attributes:
        folder: that it writes.
        protocol: as `train.study.__main__.protocol_of`.
        num_captions: of the train split, with additional captions to mine.
        sizes, made: what sizes that a configuration leaves out follow from, and how splits were made where there are none.
    """

    folder: Path
    protocol: dict[str, Any]
    at_once: int
    threads: int
    num_captions: int
    sizes: DataSizes
    made: SplitConfig | None

    @classmethod
    def begin(cls, folder: Path, protocol: dict[str, Any], *, at_once: int, threads: int) -> "Study":
        """Check the data, and write the protocol, or compare it with the one that the study was begun with.

        Raises:
            UserError: the data cannot be used, or the study in this folder has another protocol.
            OSError: the protocol cannot be written.
        """
        record = folder / "study.json"
        if record.exists():
            begun = json.loads(record.read_text(encoding="utf-8"))["protocol"]
            changed = [key for key in protocol if key != "command" and json.dumps(begun.get(key)) != json.dumps(protocol[key])]
            if changed:
                raise UserError(
                    f"{folder} is a study with another protocol: {', '.join(changed)} changed since it was begun. A protocol stands before "
                    "the figures: give the new one a folder of its own with --output"
                )
            protocol = begun
        first = next(iter(protocol["systems"].items()))
        job = load_system(protocol["config"], [*protocol["overrides"], *first[1], f"name={first[0]}"])
        splits = load_reranker_data(job) if isinstance(job, RerankerConfig) else load_data(job)
        additional = len(splits.additional.texts) if splits.additional is not None else 0
        study = cls(
            folder=folder,
            protocol=protocol,
            at_once=at_once,
            threads=threads,
            num_captions=splits.train.num_captions + additional,
            sizes=splits.sizes(),
            made=splits.made,
        )
        if not record.exists():
            study._write({"protocol": protocol})
        return study

    def carry_out(self) -> None:
        """Run what is left to run, compare, write the page and print the answer.

        Raises:
            UserError: a run failed.
            OSError: something cannot be written.
        """
        systems = [System(name, tuple(changes)) for name, changes in self.protocol["systems"].items()]
        record: dict[str, Any] = {"protocol": self.protocol}
        if self.protocol["screening"] is not None:
            record["screening"] = self._screen(systems)
            passed = {row["system"] for row in record["screening"] if row["survives"]}
            systems = [system for system in systems if system.name in passed]
        results = self._results(systems, self.protocol["seeds"])
        costs = self._flops(systems, results)
        pairs = [(system.name, systems[0].name) for system in systems[1:]]
        if self.protocol["equal_compute"]:
            for system in systems[1:]:
                control = self._control(systems[0], sum(costs[system.name]) / sum(costs[systems[0].name]), results)
                if control is None:
                    continue
                if control.name not in results:
                    results |= self._results([control], self.protocol["seeds"])
                    costs |= self._flops([control], results)
                pairs.append((system.name, control.name))
        report = results[systems[0].name][0].report["data"]
        record |= {
            "data": report,
            "systems": figures(results, costs),
            "comparisons": compare_systems(results, pairs),
        }
        self._finish(record, results)

    def _screen(self, systems: Sequence[System]) -> list[dict[str, Any]]:
        """Mean R@1 of each system in short runs of other seeds, and which go on: the first, and the best of the others."""
        plan = self.protocol["screening"]
        short = {system.name: self._scaled(f"{system.name}-screen", system, plan["share"]) for system in systems}
        results = self._results(list(short.values()), plan["seeds"])
        means = {name: float(np.mean([run.recall_at(1)["both"] for run in results[system.name]])) for name, system in short.items()}
        best = sorted((system.name for system in systems[1:]), key=lambda name: -means[name])[: plan["survivors"]]
        survive = {systems[0].name, *best}
        return [{"system": name, "mean_R@1": mean, "survives": name in survive} for name, mean in means.items()]

    def _control(self, first: System, times: float, results: Results) -> System | None:
        """The first system with so many times its steps, or one of nearly as many that is there already; None for as many as it has."""
        if times <= 1 + _SPREAD:
            return None
        for name in results:
            there = name.removeprefix(f"{first.name}, ").removesuffix(" x steps")
            if there != name and abs(float(there) / times - 1) <= _SPREAD:
                return System(name, ())
        return self._scaled(f"{first.name}, {times:.2f} x steps", first, times)

    def _scaled(self, name: str, system: System, times: float) -> System:
        """A system with so many times the steps; its evaluations lie as many times apart, so that as many checkpoints are chosen among."""
        config, scaled = self._config(system), {}
        for key in ("max_steps", "eval_every_steps", "checkpoint_every_steps"):
            scaled[key] = max(1, round(getattr(config.train, key) * times))
        return System(name, (*system.overrides, *(f"train.{key}={value}" for key, value in scaled.items())))

    def _config(self, system: System) -> JobConfig | RerankerConfig:
        config = load_system(self.protocol["config"], [*self.protocol["overrides"], *system.overrides, "name=study"])
        return config.resolved(self.sizes, self.made if config.data.split is None else None) if config.is_open else config

    def _results(self, systems: Sequence[System], seeds: Sequence[int]) -> dict[str, list[Result]]:
        """The runs of some systems, run where they are not finished; seed by seed."""
        planned = {(system.name, seed): self._planned(system, seed) for seed in seeds for system in systems}
        carry_out(self.protocol["config"], list(planned.values()), at_once=self.at_once, threads=self.threads, say=_say)
        return {system.name: [Result.read(planned[system.name, seed], self._config(system)) for seed in seeds] for system in systems}

    def _planned(self, system: System, seed: int) -> Planned:
        folder = self.folder / "runs" / f"{system.name.replace(', ', '-').replace(' ', '')}-{seed}"
        own = (f"name={folder.name}", f"runs_folder={folder.parent}", f"seed={seed}")
        return Planned(system=system.name, seed=seed, overrides=(*self.protocol["overrides"], *system.overrides, *own), folder=folder)

    def _flops(self, systems: Sequence[System], results: Results) -> dict[str, list[float]]:
        """Floating-point operations of each run of the systems; those of a cross-encoder are not counted."""
        found = {}
        for system in systems:
            config, runs = self._config(system), results[system.name]
            if isinstance(config, JobConfig):
                towers = TowerCost.of(str(runs[0].planned.folder / "export"))
                found[system.name] = [flops(run, config, towers, self.sizes.num_images, self.num_captions) for run in runs]
        return found

    def _write(self, record: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_files({self.folder / "study.json": json.dumps(record, indent=1) + "\n"})

    def _finish(self, record: dict[str, Any], results: Results) -> None:
        """Write figures, rows and page, and print the answer."""
        tables = []
        for system, runs in results.items():
            for run in runs:
                rows = run.queries.drop_columns(["stage"]) if "stage" in run.queries.column_names else run.queries
                rows = rows.append_column("system", pa.array([system] * len(rows)))
                tables.append(rows.append_column("seed", pa.array([run.planned.seed] * len(rows), pa.int64())))
        self._write(record)
        pq.write_table(pa.concat_tables(tables), self.folder / "queries.parquet")
        replace_files({self.folder / "study.md": page(record)})
        data, seeds = record["data"], self.protocol["seeds"]
        print(f"mean R@1 of both directions on {data['split']} ({data['num_images']:,} images), {len(seeds)} seed(s):")
        for line in answer(record):
            print(f"  {line}")
        print(f"page: {self.folder / 'study.md'}")


def _say(text: str) -> None:
    print(text, flush=True)

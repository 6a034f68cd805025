"""The tasks of a study: what each process does, and the folder that its results are found in again."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .spec import Row, Study


RECIPE, LOG, RECORD, TRAINED = "recipe.yaml", "log.txt", "run.json", "trained.json"
TRAIN_DIR, EVALUATION_DIR, SUMMARY = "train", "evaluation", "summary.json"


@dataclass(frozen=True)
class Task:
    """The work of one process: a command of `sgopd`, the evaluation of a model, or both in this order.

    Attributes:
        label: the row's name, or the command. seed: of a run. folder: of its results.
        recipe: as it is given to the command. command: with its options, without the recipe; empty to evaluate only.
        model: a name or folder, evaluated afterwards with `evaluation`; None to evaluate nothing.
        stated: what the study says of it, for its record. keep_models: leave the weights when it is done.
    """

    label: str
    seed: int | None
    folder: Path
    recipe: Mapping[str, Any] | None = None
    command: tuple[str, ...] = ()
    model: str | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)
    keep_models: bool = False

    @property
    def name(self) -> str:
        return self.label if self.seed is None else f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """The tasks of a study: `prepare` before the others; `runs` by row's name and seed (None for a model's row)."""

    prepare: tuple[Task, ...]
    runs: Mapping[tuple[str, int | None], Task]


def make_plan(
    study: Study,
    recipes: Mapping[str, Mapping[str, Any]],
    prepared: Sequence[Mapping[str, Any]],
    weights: Mapping[str, str | None],
) -> Plan:
    """The study's tasks. Nothing is written for it.

    Args:
        recipes: resolved, by row. prepared: resolved, of each of the study's `prepare`. weights: of models, by row.
    """
    planned: dict[str, Path] = {}
    prepare = []
    filled: dict[Path, list[str]] = {}  # what fills each teacher bank
    for step, recipe in zip(study.prepare, prepared, strict=True):
        command = (step.command, *step.flags)
        folder = task_folder(study.runs_dir, step.command, {"command": command, "recipe": recipe}, planned)
        whole = dict(recipe) | {"output_dir": str(folder / TRAIN_DIR)}
        stated = {"recipe": str(step.config), "overrides": dict(step.overrides)}
        prepare.append(Task(step.command, None, folder, whole, command, stated=stated))
        for bank in teacher_banks(recipe):
            filled.setdefault(bank, []).append(folder.name.rpartition("-")[2])
    runs = {}
    for row in study.rows:
        if row.model is not None:
            runs[row.name, None] = _evaluation_of(row, study, planned, weights[row.name])
            continue
        recipe = recipes[row.name]
        read = sorted(digest for bank in teacher_banks(recipe) for digest in filled.get(bank, ()))
        for task in _trainings_of(row, study, planned, recipe, read):
            runs[row.name, task.seed] = task
    return Plan(tuple(prepare), runs)


def _evaluation_of(row: Row, study: Study, planned: dict[str, Path], weights: str | None) -> Task:
    evaluation = dict(study.evaluation)
    stated = {"model": row.model, "weights": weights}
    folder = task_folder(study.runs_dir, row.name, {**stated, "evaluation": evaluation}, planned)
    return Task(row.name, None, folder, model=row.model, evaluation=evaluation, stated=stated)


def _trainings_of(
    row: Row, study: Study, planned: dict[str, Path], recipe: Mapping[str, Any], read: Sequence[str]
) -> list[Task]:
    """A row's runs. Args: read: digests of the `prepare` whose rollouts it trains on. planned: as for `task_folder`."""
    evaluation = dict(study.evaluation)
    prepared = {"prepare": list(read)} if read else {}
    told_by = {"recipe": recipe, "evaluation": evaluation, **prepared}
    parent = task_folder(study.runs_dir, row.name, told_by, planned)
    stated = {"recipe": str(row.recipe), "overrides": {**study.overrides, **row.overrides}, **prepared}
    tasks = []
    for seed in study.seeds:
        folder = parent / f"seed-{seed}"
        model = str(folder / TRAIN_DIR)
        # Runs that were evaluated with the same random numbers would share their noise, which no standard error shows
        own = evaluation | {"seed": evaluation.get("seed", 0) + seed}
        # The log is read in a file: a line a step, not a bar
        whole = {"disable_tqdm": True} | dict(recipe) | {"seed": seed, "output_dir": model}
        tasks.append(Task(row.name, seed, folder, whole, ("train",), model, own, stated, study.keep_models))
    return tasks


def teacher_banks(recipe: Mapping[str, Any]) -> set[Path]:
    """The folders of teacher rollouts that a recipe or its stages name."""
    named = (each.get("teacher_bank") for each in (recipe, *recipe.get("stages", ())))
    return {Path(bank) for bank in named if bank}


def task_folder(runs_dir: Path, name: str, stated: Mapping[str, Any], planned: dict[str, Path]) -> Path:
    """The folder for what is stated: the one that has it already, under whatever name, or one that there is not yet.

    Args:
        stated: all that tells this work from other work; `seed` and `output_dir` of a recipe do not.
        planned: folders of this plan by what is stated, which this one is added to: two rows may be one run.
    """
    recipe = {key: value for key, value in stated.get("recipe", {}).items() if key not in ("seed", "output_dir")}
    text = json.dumps({**stated, "recipe": recipe}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "row"
    there = next(iter(sorted(runs_dir.glob(f"*-{digest}"))), runs_dir / f"{slug}-{digest}")
    return planned.setdefault(digest, there)


def write_recipe(task: Task) -> Path:
    """Write the recipe that the task's command is given, for whoever repeats it by hand, and return its path."""
    path = task.folder / RECIPE
    header = f"# {task.name}: sgopd {' '.join(task.command)} --config {path}\n"
    path.write_text(header + yaml.safe_dump(dict(task.recipe or {}), sort_keys=False), encoding="utf-8")
    return path

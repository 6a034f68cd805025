"""The YAML file of a study. Nothing here imports torch or TRL."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..cli.errors import UsageError


PREPARE_OPTIONS = ("prompts", "batch_size")  # of `sgopd teacher-rollouts`
PROMPTS = ("run", "all")


@dataclass(frozen=True)
class Row:
    """A line of the table: a recipe that is trained with every seed, or a model that is evaluated as it is.

    Attributes:
        name: as in the table. recipe: a file of `sgopd train`. model: in its place, a model's name or folder.
        overrides: of the recipe's keys. group: a heading of the table. paper: the paper's figures, in percent, by metric.
    """

    name: str
    recipe: Path | None = None
    model: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepare:
    """A command that is run once, before the first run: its recipe, overrides and own options."""

    command: str
    config: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> tuple[str, ...]:
        """Its own options, as on a command line."""
        return tuple(part for key, value in self.options.items() for part in (f"--{key}", str(value)))


@dataclass(frozen=True)
class Study:
    """What a study states.

    Attributes:
        path: of its file. runs_dir: folder of the runs, which studies share. output_dir: of tables and figures.
        baseline: the row that the others are compared to. seeds: of every recipe's runs.
        overrides: of every recipe that knows the key. evaluation: how final models are evaluated.
        prepare: what is made once, before the runs. keep_models: keep weights and checkpoints of finished runs.
        gpus_per_run: where there are GPUs. dynamics: rows of the figures over steps; None: the first ones.
    """

    path: Path
    runs_dir: Path
    output_dir: Path
    baseline: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    prepare: tuple[Prepare, ...] = ()
    keep_models: bool = False
    gpus_per_run: int = 1
    dynamics: tuple[str, ...] | None = None


def read_study(path: str | Path) -> Study:
    """The study in a file, checked as far as that goes without its recipes.

    Raises:
        UsageError: when the file does not exist or is no study, with the key and the value that are wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"The study {path} does not exist (looked for it in {Path.cwd()}).")
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    given = _mapping(given, str(path))
    check_keys(given, {f.name for f in fields(Study)} - {"path"}, path.name)
    for key in ("runs_dir", "output_dir", "baseline", "seeds", "rows", "evaluation"):
        if key not in given:
            raise UsageError(f"{path.name} lacks `{key}`.")
    rows = tuple(_row(str(name), row, path) for name, row in _mapping(given["rows"], "`rows`").items())
    baseline = str(given["baseline"])
    trained = [row.name for row in rows if row.recipe is not None]
    if baseline not in trained:
        hint = nearest(baseline, trained)
        raise UsageError(f"`baseline` must be one of the rows with a recipe, got {baseline!r}.{hint}")
    dynamics = given.get("dynamics")
    if dynamics is not None:
        dynamics = tuple(map(str, _list(dynamics, "`dynamics`")))
        for name in dynamics:
            if name not in trained:
                raise UsageError(f"`dynamics` must be rows with a recipe, got {name!r}.{nearest(name, trained)}")
    return Study(
        path=path,
        runs_dir=Path(_text(given["runs_dir"], "`runs_dir`")),
        output_dir=Path(_text(given["output_dir"], "`output_dir`")),
        baseline=baseline,
        seeds=check_seeds(given["seeds"]),
        rows=rows,
        overrides=_overrides(given.get("overrides"), "`overrides`"),
        evaluation=_mapping(given["evaluation"], "`evaluation`"),
        prepare=tuple(_prepare(item, path) for item in _list(given.get("prepare", []), "`prepare`")),
        keep_models=_typed(given.get("keep_models", False), bool, "`keep_models`"),
        gpus_per_run=_positive(given.get("gpus_per_run", 1), "`gpus_per_run`"),
        dynamics=dynamics,
    )


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple. Raises UsageError where there are none, one is not a whole number >= 0, or one is twice there."""
    seeds = _list(seeds, "`seeds`")
    for seed in seeds:
        if type(seed) is not int or seed < 0:
            raise UsageError(f"`seeds` must be whole numbers >= 0, got {seed!r}.")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice or not seeds:
        raise UsageError(f"`seeds` holds {twice} more than once." if seeds else "`seeds` must hold at least one.")
    return tuple(seeds)


def check_keys(given: Collection[str], valid: Collection[str], where: str) -> None:
    """Refuse a key that is not valid, with the nearest that is. Raises UsageError."""
    for key in given:
        if key not in valid:
            raise UsageError(f"Unknown key {key!r} in {where}.{nearest(key, valid)}")


def nearest(name: Any, valid: Collection[str]) -> str:
    """' Did you mean ...?' with the nearest valid name, or the valid ones where none is near."""
    match = difflib.get_close_matches(str(name), sorted(valid), n=1)
    return f" Did you mean {match[0]!r}?" if match else f" There are: {', '.join(sorted(valid))}."


def _row(name: str, given: Any, path: Path) -> Row:
    where = f"row {name!r} of {path.name}"
    given = _mapping(given, where)
    check_keys(given, {f.name for f in fields(Row)} - {"name"}, where)
    if ("recipe" in given) == ("model" in given):
        raise UsageError(f"{where}: give either `recipe` or `model`.")
    if "model" in given and "overrides" in given:
        raise UsageError(f"{where}: `overrides` are of a recipe, and this row has a model.")
    paper = _mapping(given.get("paper", {}), f"`paper` of {where}")
    for metric, value in paper.items():
        if type(value) not in (int, float):
            raise UsageError(f"`paper` of {where}: {metric!r} must be a number in percent, got {value!r}.")
    return Row(
        name=name,
        recipe=_recipe(given["recipe"], path, where) if "recipe" in given else None,
        model=_text(given["model"], f"`model` of {where}") if "model" in given else None,
        overrides=_overrides(given.get("overrides"), f"`overrides` of {where}"),
        group=None if given.get("group") is None else str(given["group"]),
        paper=paper,
    )


def _prepare(given: Any, path: Path) -> Prepare:
    where = f"`prepare` of {path.name}"
    given = _mapping(given, where)
    check_keys(given, {"command", "config", "overrides", *PREPARE_OPTIONS}, where)
    if given.get("command") != "teacher-rollouts":
        raise UsageError(f"{where}: `command` must be teacher-rollouts, got {given.get('command')!r}.")
    if "config" not in given:
        raise UsageError(f"{where} lacks `config`, the recipe.")
    if given.get("prompts", "run") not in PROMPTS:
        raise UsageError(f"{where}: `prompts` must be {' or '.join(PROMPTS)}, got {given['prompts']!r}.")
    _positive(given.get("batch_size", 1), f"`batch_size` in {where}")
    return Prepare(
        command=given["command"],
        config=_recipe(given["config"], path, where),
        overrides=_overrides(given.get("overrides"), f"`overrides` of {where}"),
        options={key: given[key] for key in PREPARE_OPTIONS if key in given},
    )


def _recipe(name: Any, study: Path, where: str) -> Path:
    recipe = study.parent / _text(name, f"recipe of {where}")
    if not recipe.is_file():
        raise UsageError(f"The recipe {recipe} of {where} does not exist; it is looked for beside the study.")
    return recipe


def _overrides(given: Any, where: str) -> Mapping[str, Any]:
    overrides = _mapping({} if given is None else given, where)
    for key in ("seed", "output_dir", "resume_from_checkpoint"):
        if key in overrides:
            raise UsageError(f"{where} must not hold `{key}`, which the study sets for each run.")
    return overrides


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a whole number"}
        raise UsageError(f"{where} must be {names[kind]}, got {value!r}.")
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    return _typed(value, dict, where)


def _list(value: Any, where: str) -> list[Any]:
    return _typed(list(value) if isinstance(value, tuple) else value, list, where)


def _text(value: Any, where: str) -> str:
    return _typed(value, str, where)


def _positive(value: Any, where: str) -> int:
    if _typed(value, int, where) < 1:
        raise UsageError(f"{where} must be >= 1, got {value}.")
    return value


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key which is twice there, where YAML's own quietly takes the last: two rows of one name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # it is refused below
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

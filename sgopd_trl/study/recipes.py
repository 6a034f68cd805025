"""The recipes of a study after its overrides, checked by the parser that reads them in earnest.

This needs TRL, so it runs in a process of its own: the study's own process stays without torch.
"""

import io
import tempfile
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from ..cli.errors import UsageError
from ..cli.recipe import read_recipe
from .spec import Study, nearest


Recipe = dict[str, Any]


def resolve_recipes(study: Study) -> tuple[dict[str, Recipe], list[Recipe]]:
    """The recipes of the study's rows, by name, and those of its `prepare`, with the overrides in them.

    Raises:
        UsageError: for a key that its recipe does not know, an override that no recipe knows, a value out of range.
    """
    sources = [(f"row {row.name!r}", row.recipe, row.overrides) for row in study.rows if row.recipe is not None]
    sources += [("`prepare`", step.config, step.overrides) for step in study.prepare]
    known_to_any: set[str] = set()
    resolved = []
    for where, path, overrides in sources:
        recipe, _ = read_recipe(["--config", str(path)])
        keys = recipe_keys(recipe)
        for key in overrides:
            if key not in keys:
                raise UsageError(f"{where}: {path} does not know the override {key!r}.{nearest(key, keys)}")
        known_to_any |= keys
        common = {key: value for key, value in study.overrides.items() if key in keys}
        merged = merge(merge(recipe, common), overrides)
        check(merged, path.name, where)
        resolved.append(merged)
    for key in study.overrides:
        if key not in known_to_any:
            raise UsageError(f"`overrides`: no recipe knows {key!r}.{nearest(key, known_to_any)}")
    names = [row.name for row in study.rows if row.recipe is not None]
    return dict(zip(names, resolved)), resolved[len(names) :]


def recipe_keys(recipe: Mapping[str, Any]) -> Collection[str]:
    """The keys that this recipe may hold."""
    from ..cli.launch import launch_flags

    return {name for cls in _dataclasses(recipe) for name in cls.__dataclass_fields__} | {*launch_flags(), "env"}


def merge(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with these keys in the place of its own; what a stage of it says itself stays.

    `stages` as a mapping, in the place of the recipe's list, overrides keys of the stages with these names.

    Raises:
        UsageError: when the recipe has no stage of that name.
    """
    merged = {**recipe, **overrides}
    by_name = overrides.get("stages")
    if isinstance(by_name, Mapping):
        stages = recipe.get("stages") or []
        names = [stage.get("name") for stage in stages]
        for name in by_name:
            if name not in names:
                raise UsageError(f"`stages`: the recipe has no stage {name!r}, only {', '.join(map(str, names))}.")
        merged["stages"] = [{**stage, **by_name.get(stage.get("name"), {})} for stage in stages]
    return merged


def check(recipe: Recipe, name: str, where: str) -> None:
    """Refuse what `sgopd train` would refuse of a recipe in a file of this name. Raises UsageError, `where` first."""
    from ..cli.train import read_command_line

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        # A GPU is not to be touched here, and that of a run may be another
        path.write_text(yaml.safe_dump(recipe | {"use_cpu": True, "output_dir": folder}))
        try:
            _, training, _ = read_command_line(["--config", str(path)])
            with redirect_stdout(io.StringIO()):
                _parser(recipe).parse_args_and_config(training, fail_with_unknown_args=False)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error


def _dataclasses(recipe: Mapping[str, Any]) -> tuple[type, ...]:
    from ..cli import arguments

    if hasattr(arguments, "dataclasses"):
        return arguments.dataclasses(recipe.get("trainer") or "sgopd")
    return arguments.DATACLASSES


def _parser(recipe: Mapping[str, Any]) -> Any:
    from ..cli import arguments

    return arguments.Parser(recipe["trainer"]) if recipe.get("trainer") else arguments.Parser()

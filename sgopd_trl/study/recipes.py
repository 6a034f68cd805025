"""The recipes of a study after its overrides, checked by the parser that reads them in earnest.

This needs TRL, so it runs in a process of its own: the study's own process stays without torch.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from ..cli.errors import UsageError
from ..cli.recipe import read_recipe
from .plan import teacher_banks
from .spec import Prepare, Study, nearest


Recipe = dict[str, Any]


def resolve_recipes(study: Study) -> tuple[dict[str, Recipe], list[Recipe]]:
    """The recipes of the study's rows, by name, and those of its `prepare`, with the overrides in them.

    Raises:
        UsageError: for a key that its recipe does not know, an override that no recipe knows or that a stage would not
            see, a value that is out of range, and a `prepare` whose rollouts no row could find.
    """
    sources = [(f"row {row.name!r}", row.recipe, row.overrides, None) for row in study.rows if row.recipe is not None]
    sources += [("`prepare`", step.config, step.overrides, step) for step in study.prepare]
    known_to_any: set[str] = set()
    resolved = []
    for where, path, overrides, prepare in sources:
        recipe, _ = read_recipe(["--config", str(path)])
        with told(where):
            keys = recipe_keys({**recipe, **overrides} if "trainer" in overrides else recipe, path.name)
            for key in overrides:
                if key not in keys:
                    raise UsageError(f"{path} does not know the override {key!r}.{nearest(key, keys)}")
            common = {key: value for key, value in study.overrides.items() if key in keys and key not in overrides}
            merged = merge(recipe, {**common, **overrides})
            check(merged, path.name, prepare)
        known_to_any |= keys
        resolved.append(merged)
    for key in study.overrides:
        if key not in known_to_any:
            raise UsageError(f"`overrides`: no recipe knows {key!r}.{nearest(key, known_to_any)}")
    names = [row.name for row in study.rows if row.recipe is not None]
    prepared = resolved[len(names) :]
    for step, recipe in zip(study.prepare, prepared, strict=True):
        if not teacher_banks(recipe):
            raise UsageError(
                f"`prepare` with {step.config} names no `teacher_bank`: its rollouts would be in a folder that no row reads. "
                "Name one in its overrides, and the same in those of the rows that train on them."
            )
    return dict(zip(names, resolved)), prepared


def hash_weights(study: Study) -> dict[str, str | None]:
    """What tells the weights of the rows' models from others under the same name; None for a Hub id.

    Raises:
        UsageError: for a miniature checkpoint that there is not.
    """
    from ..miniature import resolve
    from ..teachers.identity import weights_hash

    hashes = {}
    for row in study.rows:
        if row.model is not None:
            with told(f"row {row.name!r}"):
                hashes[row.name] = weights_hash(resolve(row.model))
    return hashes


@contextmanager
def told(where: str) -> Iterator[None]:
    """Say where before the message of a mistake, as a UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def recipe_keys(recipe: Recipe, name: str) -> set[str]:
    """The keys that this recipe may hold: those of its trainer, or of all its stages'. Raises UsageError as its command."""
    from ..cli.arguments import Parser, trainer_name
    from ..cli.launch import launch_flags
    from ..cli.stages import is_staged, read_stages

    if is_staged(recipe):
        trainers, own = {stage.trainer for stage in read_stages(recipe, name)[0]}, {"stages"}
    else:
        trainers, own = {trainer_name([], recipe)}, set()
    return set().union(own, {"env", "accelerate_config"}, launch_flags(), *(Parser(each).hints for each in trainers))


def merge(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with these keys in the place of its own.

    `stages` as a mapping, in the place of the recipe's list, overrides keys of the stages with these names.

    Raises:
        UsageError: when the recipe has no stage of that name, its override is no mapping, or a stage states an overridden
            key itself, which would then not reach it.
    """
    merged = {**recipe, **overrides}
    stages = recipe.get("stages") or []
    by_name = overrides.get("stages", {})
    if not isinstance(by_name, Mapping):
        return merged
    names = [stage.get("name") for stage in stages]
    for name, keys in by_name.items():
        if name not in names:
            raise UsageError(f"`stages`: the recipe has no stage {name!r}, only {', '.join(map(str, names))}.")
        if not isinstance(keys, Mapping):
            raise UsageError(f"`stages`: the override of stage {name!r} must be a mapping of its keys, got {keys!r}.")
    for stage in stages:
        for key in overrides.keys() & stage.keys() - by_name.get(stage["name"], {}).keys():
            raise UsageError(
                f"the override `{key}` would not reach stage {stage['name']!r}, which states it itself. Say in the row's "
                f"overrides what holds there: {{stages: {{{stage['name']}: {{{key}: ...}}}}}}."
            )
    if stages:
        merged["stages"] = [{**stage, **by_name.get(stage.get("name"), {})} for stage in stages]
    return merged


def check(recipe: Recipe, name: str, prepare: Prepare | None = None) -> None:
    """Refuse what `sgopd train`, or the command of `prepare`, would refuse of a recipe in a file of this name. Raises
    ValueError as that does."""
    from ..cli.staged_run import StagedRun
    from ..cli.stages import environment_kept, is_staged
    from ..cli.train import parse, read_command_line

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), environment_kept():
        # A GPU is not to be touched here, and that of a run may be another
        recipe = recipe | {"use_cpu": True, "output_dir": folder}
        if is_staged(recipe):
            options, command = ((), None) if prepare is None else (prepare.flags, prepare.command)
            StagedRun(recipe, name, [*options, "--config", name], command)
            return
        path = Path(folder) / name
        path.write_text(yaml.safe_dump(recipe))
        _, training, _ = read_command_line(["--config", str(path)])
        parse(training)

"""Reading a recipe, without torch or TRL: its `env` must be in place before they are imported."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError


def split_config_flag(args: Sequence[str]) -> list[str]:
    """The arguments with `--config=PATH` as two, the only form that TRL's parser knows."""
    return [part for token in args for part in (token.split("=", 1) if token.startswith("--config=") else [token])]


def read_recipe(args: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The mapping in the file that `--config` names, and that file's name; an empty one without `--config`.

    Raises:
        UsageError: when the file does not exist, is not YAML, or does not hold a mapping.
    """
    args = split_config_flag(args)
    if "--config" not in args:
        return {}, None
    position = args.index("--config") + 1
    if position == len(args):
        raise UsageError("Expected the path of a recipe after --config.")
    path = Path(args[position])
    if not path.is_file():
        raise UsageError(f"The recipe {path} does not exist (looked for it in {Path.cwd()}).")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} must hold a YAML mapping, one `key: value` a line, got {type(recipe).__name__}.")
    return recipe, path.name


def apply_env(recipe: dict[str, Any]) -> None:
    """Set the environment variables of a recipe's `env`, as TRL's parser does, but before torch reads them.

    Raises:
        UsageError: when `env` is not a mapping.
    """
    env = recipe.get("env", {})
    if not isinstance(env, dict):
        raise UsageError(f"`env` must be a mapping of variables to values, got {env!r}.")
    for name, value in env.items():
        os.environ[name] = str(value)

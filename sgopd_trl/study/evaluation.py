"""The `evaluation` of a study: `sgopd eval`'s options as a mapping."""

import argparse
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ..cli import eval as eval_command
from ..cli.errors import UsageError
from .spec import check_keys


_OF_THE_STUDY = {"help", "model", "output_dir", "compare", "rejudge"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.")


def command(model: str, settings: Mapping[str, Any], output_dir: Path) -> list[str]:
    """The command line of `sgopd` that evaluates a model with a study's settings. Runs that are cut off go on."""
    args = ["eval", "--model", model, "--output_dir", str(output_dir)]
    for key, value in settings.items():
        if isinstance(value, bool):
            args += [f"--{key}"] if _is_switch(key) else [f"--{key}", str(value).lower()]
        elif isinstance(value, list):
            args += [f"--{key}", *map(str, value)]
        elif value is not None:
            args += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return args


def check(settings: Mapping[str, Any]) -> None:
    """Refuse settings that `sgopd eval` does not know, or whose values it would refuse. Nothing is loaded for it.

    Raises:
        UsageError: with the nearest key, or with what is wrong about the value.
    """
    check_keys(settings, _actions().keys() - _OF_THE_STUDY, "`evaluation`")
    if not settings.get("dataset"):
        raise UsageError("`evaluation` lacks `dataset`.")
    for key, value in settings.items():
        if value is False and _is_switch(key):
            raise UsageError(f"`evaluation`: leave {key!r} out, in the place of false.")
    if type(seed := settings.get("seed", 0)) is not int:
        raise UsageError(f"`evaluation`: `seed` must be a whole number, got {seed!r}.")
    if settings.get("engine") == "server":
        raise UsageError(
            "`evaluation`: with `engine: server` every run would be given the figures of the model that the server has. State "
            "`engine: vllm` or `engine: transformers`, which load the model that a run has trained."
        )
    try:
        eval_command.check(_parse(settings))
    except ValueError as error:
        raise UsageError(f"`evaluation`: {error}") from error


def check_data(settings: Mapping[str, Any]) -> None:
    """Load what the evaluations will judge, and who judges it, before the first run trains. This needs TRL.

    Raises:
        UsageError: when a dataset or the verifier cannot be loaded, they do not fit each other, or there is no such engine.
    """
    args = _parse(settings)
    try:
        problems, judge = eval_command.load_data(args)
        for each in problems:
            judge.check(each.name, each.rows.to_list())
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"`evaluation`: {error}") from error
    if args.engine == "vllm" and find_spec("vllm") is None:  # importing it takes long, and may look for GPUs
        raise UsageError(
            "`evaluation`: `engine: vllm`, the default, needs vLLM, which is not installed. Install it with `pip install "
            "'sgopd-trl[vllm]'`, or state `engine: transformers`."
        )


def _parse(settings: Mapping[str, Any]) -> argparse.Namespace:
    return _parser().parse_args(command("model", settings, Path("folder")))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sgopd", allow_abbrev=False)
    eval_command.add_parser(parser.add_subparsers(parser_class=_Parser))
    return parser


def _actions() -> dict[str, argparse.Action]:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action for action in commands.choices["eval"]._actions}


def _is_switch(key: str) -> bool:
    return key in (actions := _actions()) and actions[key].nargs == 0

"""The `sgopd` command. Nothing here imports torch or TRL before a subcommand needs it."""

import argparse
import importlib
import sys

from .. import __version__
from . import demo, env, miniature, plot, study, verify
from . import eval as eval_command
from .errors import reported
from .recipe import apply_env, read_recipe


_TRAIN_HELP = "train a student from a recipe: --config recipe.yaml and overrides (`sgopd train --help` lists them)"
_ROLLOUTS_HELP = "generate and verify the teacher's rollouts of a recipe ahead of its runs: --config recipe.yaml"


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code.

    Args:
        argv: the arguments after `sgopd`; default: the process's own.

    Raises:
        SystemExit: with code 2 on a wrong command line, 1 on another mistake of the user's, 0 after `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["train"], ["teacher-rollouts"]):  # their options are dataclasses, which only TRL's parser knows
        with reported(f"sgopd {argv[0]}"):
            apply_env(read_recipe(argv[1:])[0])
        module = importlib.import_module(f".{argv[0].replace('-', '_')}", __package__)
        return module.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="sgopd", description="SG-OPD: sign-gated on-policy distillation, for TRL.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sgopd-trl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("train", help=_TRAIN_HELP, add_help=False)
    commands.add_parser("teacher-rollouts", help=_ROLLOUTS_HELP, add_help=False)
    for command in (eval_command, plot, study, verify, demo, miniature, env):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    return args.run(args)

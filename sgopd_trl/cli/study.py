"""`sgopd study`: recipes over seeds, scheduled over the machine, and one table of them."""

import argparse
from pathlib import Path

from .errors import reported


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "study",
        help="run recipes over seeds, resumable, and compare them in one table: STUDY.yaml",
        description="Runs every recipe of a study with every seed, each in its own process, over the cores or GPUs there "
        "are, and writes a table with intervals. Runs that have finished are not repeated: a study that was stopped goes "
        "on with the same command.",
        allow_abbrev=False,
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study (docs/studies.md)")
    parser.add_argument("--seeds", type=int, nargs="+", help="run these seeds, in place of the study's")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="run these rows only")
    parser.add_argument("--jobs", type=int, help="runs at once; default: one a core, or one a GPU where there are any")
    parser.add_argument("--report_only", action="store_true", help="start nothing: the table of what has finished")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..study.run import run_study
    from ..study.spec import read_study

    with reported("sgopd study"):
        return run_study(read_study(args.study), args.seeds, args.rows, args.jobs, args.report_only)

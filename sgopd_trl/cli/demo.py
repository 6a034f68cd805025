"""`sgopd demo`: a student learns from a teacher, on a CPU, without a download."""

import argparse
from pathlib import Path

from .errors import reported


MAX_STEPS = 100


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="watch a small student learn from a teacher: about three minutes on two CPU cores, no download",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("sgopd-demo"), help="folder of everything it writes")
    parser.add_argument("--max_steps", type=_steps, default=MAX_STEPS, help=f"optimizer steps, 1 to {MAX_STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with reported("sgopd demo"):
        if args.output_dir.exists() and not args.output_dir.is_dir():
            raise ValueError(f"--output_dir must be a folder, but {args.output_dir} is a file.")
        from ..demo import check_output_dir, run_demo

        check_output_dir(args.output_dir)
    run_demo(output_dir=args.output_dir, max_steps=args.max_steps, seed=args.seed)
    return 0


def _steps(text: str) -> int:
    steps = int(text)
    if not 1 <= steps <= MAX_STEPS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_STEPS}, got {steps}")
    return steps

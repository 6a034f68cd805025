"""`sgopd miniature`: rebuild the checkpoints that the package ships, or write one out for vLLM."""

import argparse
from pathlib import Path

from ..miniature.task import CHECKPOINTS
from .errors import reported


def add_parser(commands: argparse._SubParsersAction) -> None:
    group = commands.add_parser("miniature", help="the miniature task and its models", allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser(
        "build",
        help="train the miniature checkpoints from nothing: about three minutes of CPU",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that gets one model directory a name")
    parser.add_argument(
        "--names", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS), help="which checkpoints to build"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--data", action="store_true", help="also write train.jsonl and test.jsonl of `miniature`")
    parser.set_defaults(run=run)
    parser = actions.add_parser(
        "export",
        help="write a checkpoint with wider attention heads, which vLLM on a CPU can serve",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=CHECKPOINTS, help="which checkpoint")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that gets model and tokenizer")
    parser.add_argument("--head_dim", type=int, default=32, help="width of a head, a multiple of 16")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    with reported("sgopd miniature export"):
        args.output_dir.mkdir(parents=True, exist_ok=True)
        from ..miniature.export import export

        export(f"miniature:{args.name}", args.output_dir, args.head_dim)
    print(f"Written to {args.output_dir}: {args.name}, with heads of {args.head_dim}")
    return 0


def run(args: argparse.Namespace) -> int:
    with reported("sgopd miniature build"):
        args.output_dir.mkdir(parents=True, exist_ok=True)
    from ..miniature.build import build, write_data

    build(args.output_dir, names=args.names, seed=args.seed)
    if args.data:
        write_data(args.output_dir, seed=args.seed)
    print(f"Written to {args.output_dir}: {', '.join(args.names)}{', train.jsonl, test.jsonl' if args.data else ''}")
    return 0

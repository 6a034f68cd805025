"""`sgopd eval --compare`: the paired difference of two evaluations."""

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import UsageError, reported


if TYPE_CHECKING:
    from rich.console import Console


_TAKEN = ("compare", "output_dir", "confidence", "bootstrap_samples", "bootstrap_seed")


def check(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Refuse options that a comparison does not use, and values that are out of range.

    Args:
        defaults: of the options of `sgopd eval`.

    Raises:
        UsageError: naming the options. ValueError: for a value.
    """
    from ..evaluation.settings import check_bootstrap

    unused = [f"--{name}" for name, value in defaults.items() if name not in _TAKEN and getattr(args, name) != value]
    if unused:
        raise UsageError(
            f"{', '.join(unused)} would do nothing with --compare, which takes "
            f"{', '.join(f'--{name}' for name in _TAKEN[1:])} only. Leave out what it does not take."
        )
    check_bootstrap(args.confidence, args.bootstrap_samples, args.bootstrap_seed)


def run(args: argparse.Namespace, defaults: Mapping[str, Any], console: "Console") -> int:
    with reported("sgopd eval"):
        from ..atomic_file import write_whole
        from ..evaluation.compare import Run, check_comparable, compare, comparison_tables

        check(args, defaults)
        runs = [Run.read(folder) for folder in args.compare]
        warnings = check_comparable(*runs)
        comparison = compare(*runs, count=args.bootstrap_samples, confidence=args.confidence, seed=args.bootstrap_seed)
    for letter, each in zip("AB", runs, strict=True):
        console.print(f"{letter}: {each.folder} ({each.model})", markup=False, highlight=False, soft_wrap=True)
    for warning in warnings:
        console.print(f"Not only the models differ: {warning}.", style="bold red", markup=False, soft_wrap=True)
    for found in comparison_tables(comparison):
        console.print(found)
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(
            args.output_dir / "comparison.json", json.dumps(comparison | {"warnings": warnings}, indent=2) + "\n"
        )
    return 0

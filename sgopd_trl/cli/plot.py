"""`sgopd plot`: the training dynamics of one run or of several, side by side."""

import argparse
from pathlib import Path

from .errors import UsageError, reported


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plot",
        help="draw the training dynamics of runs: output folders of `sgopd train`",
        description="Draws reward, response length, entropy and reverse KL over the steps (Figure 5 of the paper) as "
        "training_dynamics.png, and the sign shares (Figure 7) as sign_shares.png, a line a run. What a run does not log "
        "is left out; the steps of stages are counted on.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of a run")
    parser.add_argument("--names", nargs="+", help="the runs' names in the legend; default: those of their folders")
    parser.add_argument("--output_dir", type=Path, default=Path("."), help="folder of the images; default: this one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with reported("sgopd plot"):
        draw(args.runs, args.names or [path.name for path in args.runs], args.output_dir)
    return 0


def draw(runs: list[Path], names: list[str], output_dir: Path) -> None:
    """Draw what the runs have logged, and say where it is.

    Raises:
        UsageError: for a folder without metrics, or names that do not tell the runs apart. ValueError: metrics that cannot
            be read, or none of a trainer that samples.
    """
    from ..figures import plot_dynamics, plot_dynamics_of_rows, plot_sign_shares, plot_sign_shares_of_rows
    from ..metrics_log import read_run
    from ..output_folder import METRICS

    if len(names) != len(runs) or len(set(names)) != len(names):
        raise UsageError(f"{len(runs)} runs need as many different names, got {names}. Give them with --names.")
    logs = {name: [read_run(path)] for name, path in zip(names, runs, strict=True)}
    for path, (log,) in zip(runs, logs.values(), strict=True):
        if not log:
            raise UsageError(
                f"{path} has no {METRICS} with a step in it: it is not the output folder of a run of `sgopd train`, or that "
                "has logged nothing yet."
            )
    signed = {name: run for name, run in logs.items() if any(row.get("sign/agree") is not None for row in run[0])}
    output_dir.mkdir(parents=True, exist_ok=True)
    dynamics, shares = output_dir / "training_dynamics.png", output_dir / "sign_shares.png"
    if len(logs) == 1 and signed:
        ((log,),) = logs.values()
        plot_dynamics(log, dynamics)
        plot_sign_shares(log, shares)
    else:
        plot_dynamics_of_rows(logs, dynamics)
        if signed:
            plot_sign_shares_of_rows(signed, shares)
    print(f"{dynamics}" + (f"\n{shares}" if signed else ""))

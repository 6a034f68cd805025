"""The figures of a study: its rows with their intervals, and the dynamics of several rows over their seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..figures import Interval, plot_dynamics_of_rows, plot_rows, plot_sign_shares_of_rows
from ..metrics_log import read_run
from .plan import RECIPE, TRAIN_DIR
from .results import RowResult, metrics_of


ROWS, DYNAMICS, SIGN_SHARES = "rows.png", "training_dynamics.png", "sign_shares.png"
MAX_LINES = 8  # of a figure of dynamics, where the study does not say which rows


def draw(results: Sequence[RowResult], baseline: str, dynamics: Sequence[str] | None, output_dir: Path) -> list[str]:
    """Draw what the finished runs allow, and return the names of the files.

    Args:
        dynamics: rows of the figures over steps; None: the first ones.
    """
    drawn = []
    done = [row for row in results if row.runs]
    panels = row_panels(done, baseline)
    if panels:
        plot_rows(panels, [row.name for row in done], output_dir / ROWS, zero=f"− {baseline}")
        drawn.append(ROWS)
    trained = [row for row in done if None not in row.runs]
    shown = trained[:MAX_LINES] if dynamics is None else [row for row in trained if row.name in dynamics]
    logs = {row.name: [read_task(folder) for folder in row.folders.values()] for row in shown}
    for name, plot, metrics in (
        (DYNAMICS, plot_dynamics_of_rows, ("reward", "completions/mean_length", "entropy", "reverse_kl")),
        (SIGN_SHARES, plot_sign_shares_of_rows, ("sign/agree",)),
    ):
        having = {row: runs for row, runs in logs.items() if any(_has(run, metrics) for run in runs)}
        if having:
            plot(having, output_dir / name)
            drawn.append(name)
    return drawn


def row_panels(results: Sequence[RowResult], baseline: str) -> dict[str, dict[str, Interval]]:
    """For each metric, the rows' means with a standard error on both sides and their differences, in percent."""
    panels: dict[str, dict[str, Interval]] = {}
    for metric in metrics_of(list(results)):
        means = {row.name: row.means[metric] for row in results if metric in row.means}
        panels[f"{metric}, ± standard error"] = {
            name: _percent(mean.value, mean.value - (mean.error or 0), mean.value + (mean.error or 0))
            for name, mean in means.items()
        }
        differences = {row.name: row.differences[metric] for row in results if metric in row.differences}
        decidable = {name: d for name, d in differences.items() if d.low is not None}
        if decidable:
            panels[f"{metric} − {baseline}, 95%"] = {
                name: _percent(d.value, d.low, d.high) for name, d in decidable.items()
            }
    return panels


def read_task(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run from its folder in the study's `runs_dir`, those of all its stages in the recipe's order."""
    recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    return read_run(folder / TRAIN_DIR, [stage["name"] for stage in recipe.get("stages", ())][:-1])


def _has(run: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> bool:
    return any(row.get(metric) is not None for row in run for metric in metrics)


def _percent(*values: float) -> Interval:
    value, low, high = (100 * value for value in values)
    return value, low, high

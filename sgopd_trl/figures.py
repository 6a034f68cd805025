"""Figures of runs from their logged metrics: training dynamics (Figure 5) and sign shares (Figure 7), of one run or of
several rows of a study over their seeds; and a study's rows with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter


Log = Sequence[Mapping[str, Any]]
Interval = tuple[float, float, float]  # a value, and the lower and upper end of its interval

# Okabe and Ito's colours, which people who are colour-blind can tell apart
CLASS_COLOURS = {"agree": "#0072B2", "disagree": "#E69F00", "neutral": "#C7C7C7"}
_LINE, _ALPHA_LINE = "#0072B2", "#CC79A7"
_ROW_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_ROW_STYLES = ("-", "--", ":", "-.")  # for further rows, in the same colours
_DPI = 150

_DYNAMICS = (
    ("reward", "Training reward", "mean reward"),
    ("completions/mean_length", "Mean response length", "tokens"),
    ("entropy", "Policy entropy", "nats per token"),
    ("reverse_kl", "Reverse KL to the teacher", "nats per token"),
)

_SIGN_SHARES = (
    ("sign/agree", "Agree", "share of tokens"),
    ("sign/disagree", "Disagree", "share of tokens"),
    ("sign/neutral", "Neutral", "share of tokens"),
)


def plot_dynamics(log_history: Log, path: str | Path) -> None:
    """Save reward, response length, policy entropy and reverse KL over the optimizer steps, a panel each.

    Args:
        log_history: metrics of one run, a mapping per logged step, as in `trainer.state.log_history` or a line of
            `metrics.jsonl`. Entries without a metric (the run's closing summary, say) are left out of its panel.
        path: of the image; its suffix chooses the format.

    Raises:
        ValueError: no entry has one of the metrics.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    curves = {name: _series(log_history, name) for name, *_ in _DYNAMICS}
    half = _half([steps for steps, _ in curves.values()])
    for axes, (name, title, unit) in zip(figure.subplots(2, 2).flat, _DYNAMICS, strict=True):
        steps, values = curves[name]
        axes.plot(steps, values, color=_LINE, alpha=0.4 if half else 1.0, linewidth=1, marker=_marker(steps))
        if half:
            axes.plot(steps, _running_mean(values, half), color=_LINE, linewidth=2)
            figure.supxlabel(f"thin: each logged step; thick: mean over {2 * half + 1}", fontsize=9, color="0.35")
        axes.set_title(title, fontsize=11)
        axes.set_ylabel(unit)
        if name == "reward" and 0 <= values.min() and values.max() <= 1:
            axes.set_ylim(-0.02, 1.02)
        elif name == "reverse_kl" and values.max() > 10 * abs(np.median(values)):
            # It falls by orders of magnitude; not a plain logarithm, because the k1 estimate may be below 0
            axes.set_yscale("symlog", linthresh=0.01)
            axes.yaxis.set_major_formatter("{x:g}")
        _finish(axes, steps)
    figure.savefig(path, dpi=_DPI)


def plot_sign_shares(log_history: Log, path: str | Path) -> None:
    """Save the shares of agreeing, disagreeing and neutral tokens over the optimizer steps, and alpha(t) below them.

    Args:
        log_history: as for `plot_dynamics`. path: of the image; its suffix chooses the format.

    Raises:
        ValueError: no entry has one of the metrics.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    shares, weight = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = _series(log_history, "sign/agree")[0]
    values = {name: _series(log_history, f"sign/{name}")[1] for name in CLASS_COLOURS}
    labels = [f"{name} (mean {value.mean():.0%})" for name, value in values.items()]
    half = _half([steps])
    shares.stackplot(
        steps,
        [_running_mean(value, half) for value in values.values()],
        colors=CLASS_COLOURS.values(),
        labels=labels,
        edgecolor="white",
        linewidth=0.5,
    )
    shares.set_ylim(0, 1)
    shares.set_ylabel("share of the student's tokens" + (f",\nmean over {2 * half + 1} logged steps" if half else ""))
    shares.set_title("Sign agreement of verifier and teacher", fontsize=11, loc="left", pad=24)
    shares.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9.5, borderaxespad=0.1, borderpad=0.2
    )

    alpha_steps, alpha = _series(log_history, "teacher_sampling/alpha")
    weight.plot(alpha_steps, alpha, color=_ALPHA_LINE, linewidth=2, marker=_marker(alpha_steps))
    weight.set_ylim(0, max(alpha.max(), 1e-3) * 1.15)
    weight.set_ylabel("weight")
    weight.set_title(r"$\alpha(t)$, weight of the teacher's verified rollouts", fontsize=11, loc="left")
    for axes in (shares, weight):
        _finish(axes, steps)
    shares.set_xlabel("")
    figure.savefig(path, dpi=_DPI)


def plot_dynamics_of_rows(logs: Mapping[str, Sequence[Log]], path: str | Path) -> None:
    """Save reward, response length, policy entropy and reverse KL over the steps, a line a row (the paper's Figure 5).

    A line is the mean over a row's seeds and its band the standard error, of the steps that all of them logged. A row
    without a metric is left out of its panel, and a panel that no row has is not drawn.

    Args:
        logs: by the row's name, a log of each seed as for `plot_dynamics`. path: of the image.

    Raises:
        ValueError: no row has one of the metrics.
    """
    _plot_panels(logs, _DYNAMICS, path)


def plot_sign_shares_of_rows(logs: Mapping[str, Sequence[Log]], path: str | Path) -> None:
    """Save the shares of agreeing, disagreeing and neutral tokens over the steps, a line a row (the paper's Figure 7).

    Args, lines, bands and errors are those of `plot_dynamics_of_rows`.
    """
    _plot_panels(logs, _SIGN_SHARES, path)


def plot_rows(
    panels: Mapping[str, Mapping[str, Interval]], names: Sequence[str], path: str | Path, zero: str | None = None
) -> None:
    """Save a study's rows, from the top down, with a value and its interval in each panel.

    Args:
        panels: by its title, the intervals of the rows that have one. names: of all rows, in their order.
        path: of the image. zero: panels whose titles hold this are differences, with a line at 0.
    """
    figure = Figure(figsize=(2.2 + 2.9 * len(panels), 1.2 + 0.27 * len(names)), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, intervals) in zip(columns, panels.items(), strict=True):
        difference = zero is not None and zero in title
        if difference:
            axes.axvline(0, color="0.35", linewidth=1)
        for place, name in enumerate(names):
            if name in intervals:
                value, low, high = intervals[name]
                decided = difference and not low <= 0 <= high
                colour = _ROW_COLOURS[2] if decided else _ROW_COLOURS[1]
                axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([value], [place], color=colour, marker="o", markersize=5)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("percent; differences in percentage points", fontsize=9, color="0.35")
    columns[0].set_yticks(range(len(names)), names)
    columns[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path, dpi=_DPI)


def _plot_panels(logs: Mapping[str, Sequence[Log]], panels: Sequence[tuple[str, str, str]], path: str | Path) -> None:
    curves = {
        name: {row: curve for row, runs in logs.items() if (curve := _over_seeds(runs, name))} for name, *_ in panels
    }
    drawn = [panel for panel in panels if curves[panel[0]]]
    if not drawn:
        raise ValueError(f"no run of {', '.join(logs)} has one of the metrics {', '.join(name for name, *_ in panels)}")
    columns = 2 if len(drawn) in (2, 4) else len(drawn)
    lines = -(-len(drawn) // columns)
    legend_lines = -(-len(logs) // 4)
    figure = Figure(figsize=(4.5 * columns, 3 * lines + 0.3 * legend_lines), layout="constrained")
    styles = {
        row: {"color": _ROW_COLOURS[i % len(_ROW_COLOURS)], "linestyle": _ROW_STYLES[i // len(_ROW_COLOURS) % 4]}
        for i, row in enumerate(logs)
    }
    half = _half([steps for name, *_ in drawn for steps, *_ in curves[name].values()])
    handles = {}
    for axes, (name, title, unit) in zip(figure.subplots(lines, columns, squeeze=False).flat, drawn, strict=True):
        for row, (steps, centre, error) in curves[name].items():
            centre, error = _running_mean(centre, half), _running_mean(error, half)
            handles[row] = axes.plot(steps, centre, linewidth=1.6, marker=_marker(steps), **styles[row])[0]
            axes.fill_between(
                steps, centre - error, centre + error, color=styles[row]["color"], alpha=0.15, linewidth=0
            )
        axes.set_title(title, fontsize=11)
        axes.set_ylabel(unit)
        _finish(axes, np.unique(np.concatenate([steps for steps, *_ in curves[name].values()])))
        means = np.concatenate([centre for _, centre, _ in curves[name].values()])
        if name.startswith("sign/") or (name == "reward" and 0 <= means.min() and means.max() <= 1):
            axes.set_ylim(-0.02, 1.02)
        elif name == "reverse_kl" and means.min() > 0:  # it falls by orders of magnitude, and k1 may be below 0
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # 3, and not 3 * 10^0
        elif name == "reverse_kl":
            axes.set_yscale("symlog", linthresh=0.01)
            axes.yaxis.set_major_formatter("{x:g}")
    ordered = {row: handles[row] for row in logs if row in handles}
    figure.legend(ordered.values(), ordered.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    seeds = max(map(len, logs.values())) > 1
    means = ["seeds"] * seeds + [f"{2 * half + 1} logged steps"] * bool(half)
    note = f"line: mean over {' and '.join(means)}" + "; band: standard error" * seeds if means else ""
    figure.supxlabel(note, fontsize=9, color="0.35")
    figure.savefig(path, dpi=_DPI)


def _over_seeds(runs: Sequence[Log], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps that all runs logged, mean and standard error over the runs, each (N,); None where there is no such step."""
    by_step = [{row["step"]: row[name] for row in run if row.get(name) is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    if not steps:
        return None
    values = np.array([[run[step] for step in steps] for run in by_step], dtype=float)  # (runs, N)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(steps))
    return np.array(steps, dtype=float), values.mean(axis=0), error


def _series(log_history: Log, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, each (N,), of the entries that have the metric."""
    rows = [(row["step"], row[name]) for row in log_history if row.get(name) is not None]
    if not rows:
        raise ValueError(f"no entry of the log has the metric {name!r}: were these logs written by SGOPDTrainer?")
    steps, values = np.array(rows, dtype=float).T
    return steps, values


def _half(lines: Sequence[np.ndarray]) -> int:
    """Neighbours on each side that a figure's running means are over, from its lines' steps: one number for all lines, as
    the caption says it, which does not flatten the shortest."""
    return min(map(len, lines)) // 40


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over each value and `half` neighbours on both sides, (N,) to (N,); over fewer, on both sides, at the ends.

    Equally many on both sides, so that a steep start is not drawn flatter than it is.
    """
    last = len(values) - 1
    reach = [min(half, i, last - i) for i in range(len(values))]
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reach)])


def _marker(steps: np.ndarray) -> str | None:
    return "o" if len(steps) < 10 else None


def _finish(axes: Axes, steps: np.ndarray) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if steps[0] < steps[-1]:
        axes.set_xlim(steps[0], steps[-1])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

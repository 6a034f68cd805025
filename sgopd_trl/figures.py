"""Figures of one run from its logged metrics: training dynamics (Figure 5) and sign shares (Figure 7)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


Log = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which people who are colour-blind can tell apart
CLASS_COLOURS = {"agree": "#0072B2", "disagree": "#E69F00", "neutral": "#C7C7C7"}
_LINE, _ALPHA_LINE = "#0072B2", "#CC79A7"
_DPI = 150

_DYNAMICS = (
    ("reward", "Training reward", "mean reward"),
    ("completions/mean_length", "Mean response length", "tokens"),
    ("entropy", "Policy entropy", "nats per token"),
    ("reverse_kl", "Reverse KL to the teacher", "nats per token"),
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
    for axes, (name, title, unit) in zip(figure.subplots(2, 2).flat, _DYNAMICS, strict=True):
        steps, values = _series(log_history, name)
        half = len(values) // 40
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
    half = len(steps) // 40
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


def _series(log_history: Log, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, each (N,), of the entries that have the metric."""
    rows = [(row["step"], row[name]) for row in log_history if row.get(name) is not None]
    if not rows:
        raise ValueError(f"no entry of the log has the metric {name!r}: were these logs written by SGOPDTrainer?")
    steps, values = np.array(rows, dtype=float).T
    return steps, values


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

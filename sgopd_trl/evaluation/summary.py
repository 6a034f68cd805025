"""From verdicts to `summary.json` and a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..verifiers.verdict import Status
from .metrics import Interval, accuracies, bootstrap, pass_probabilities


if TYPE_CHECKING:
    from rich.table import Table

    from .settings import EvaluationSettings


Verdicts = Sequence[Sequence[Mapping[str, Any]]]  # (P, n)

FAILURES = (Status.TIMEOUT, Status.ERROR)  # the judge's, not the sample's


def values_of(verdicts: Verdicts, k: int) -> np.ndarray:
    """(P, 2): each problem's share of correct samples, and its estimate of pass@k."""
    correct = [[line["correct"] for line in row] for row in verdicts]
    return np.stack([accuracies(correct), pass_probabilities(correct, k)], 1)


def summarize(
    settings: "EvaluationSettings",
    verdicts: Mapping[str, Verdicts],
    tells_unparsed: bool,
    served: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """The summary of an evaluation.

    Args:
        verdicts: of each benchmark. tells_unparsed: whether the verifier tells samples without an answer from wrong ones.
        served: the served model, as `Engine` has it.

    Returns:
        `model`, `served`, `settings`, `datasets` (each with `avg@k` and `pass@k` as mean, low and high, and counts) and `average`.
    """
    each, average = bootstrap(
        [values_of(rows, settings.k) for rows in verdicts.values()],
        count=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.bootstrap_seed,
    )
    datasets = {
        name: _named(intervals, settings.k) | _counts(verdicts[name], tells_unparsed)
        for name, intervals in zip(verdicts, each, strict=True)
    }
    return {
        "model": settings.model,
        "served": served,
        "settings": settings.as_dict(),
        "datasets": datasets,
        "average": _named(average, settings.k),
    }


def _named(intervals: Sequence[Interval], k: int) -> dict[str, Any]:
    return {f"{name}@{k}": found.as_dict() for name, found in zip(("avg", "pass"), intervals, strict=True)}


def _counts(verdicts: Verdicts, tells_unparsed: bool) -> dict[str, Any]:
    lines = [line for row in verdicts for line in row]
    found = Counter(line["verdict"] for line in lines)
    return {
        "problems": len(verdicts),
        "samples": len(lines),
        "truncated": sum(line["finish_reason"] == "length" for line in lines),
        "truncated_correct": sum(
            line["finish_reason"] == "length" and line["verdict"] == Status.CORRECT for line in lines
        ),
        "unparsed": found[Status.NO_ANSWER] if tells_unparsed else None,
        "verdicts": {str(status): found[status] for status in Status},
        "mean_tokens": sum(line["tokens"] for line in lines) / len(lines),
    }


def judge_failures(summary: Mapping[str, Any]) -> dict[str, int]:
    """For each benchmark with any, the samples on which the judge has failed."""
    failures = {name: sum(found["verdicts"][s] for s in FAILURES) for name, found in summary["datasets"].items()}
    return {name: count for name, count in failures.items() if count}


def tables(summary: Mapping[str, Any]) -> "list[Table]":
    """The summary for people: the figures in percent, as the paper has them, and the counts."""
    from rich.table import Table

    settings = summary["settings"]
    names = [f"avg@{settings['k']}", f"pass@{settings['k']}"]
    figures = Table(title=f"Percent, with {100 * settings['confidence']:g}% intervals over problems")
    counts = Table(title="Samples")
    for found, columns in (
        (figures, (*names, "problems")),
        (counts, ("samples", "truncated", "no answer", "judge failed", "mean tokens")),
    ):
        found.add_column("benchmark", overflow="fold")
        for name in columns:
            found.add_column(name, justify="right")
    failures = judge_failures(summary)
    for name, entry in summary["datasets"].items():
        figures.add_row(name, *(percent(entry[n]) for n in names), str(entry["problems"]))
        unparsed = "?" if entry["unparsed"] is None else entry["unparsed"]
        cells = [entry["samples"], entry["truncated"], unparsed, failures.get(name, 0), f"{entry['mean_tokens']:.0f}"]
        counts.add_row(name, *map(str, cells))
    if len(summary["datasets"]) > 1:
        figures.add_section()
        figures.add_row("average", *(percent(summary["average"][name]) for name in names))
    return [figures, counts]


def percent(interval: Mapping[str, float], signed: bool = False) -> str:
    """As 29.53 [27.10, 31.90]."""
    sign = "+" if signed else ""
    return f"{100 * interval['mean']:{sign}.2f} [{100 * interval['low']:{sign}.2f}, {100 * interval['high']:{sign}.2f}]"

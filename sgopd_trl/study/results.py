"""What the finished runs of a study come to, a row of the table each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plan import Plan
from .records import FINISHED, read_counts, read_record, read_scores
from .spec import Study
from .statistics import Difference, Mean, mean, paired_difference


@dataclass(frozen=True)
class RowResult:
    """A row's figures over its finished runs.

    Attributes:
        runs: by seed (None for a model that is evaluated as it is), each run's metrics in [0, 1].
        folders: of these runs. seconds: that each took. means: by metric.
        differences: to the baseline, paired by seed, by metric; none for the baseline itself and for a model.
        counts: of these runs' samples, as `read_counts` has them. codes: digests of the code that made them, None where that
            was not recorded.
    """

    name: str
    group: str | None
    paper: Mapping[str, float]
    runs: Mapping[int | None, Mapping[str, float]] = field(default_factory=dict)
    folders: Mapping[int | None, Path] = field(default_factory=dict)
    seconds: Mapping[int | None, float] = field(default_factory=dict)
    means: Mapping[str, Mean] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    counts: Mapping[int | None, Mapping[str, int]] = field(default_factory=dict)
    codes: Mapping[int | None, str | None] = field(default_factory=dict)


def collect(study: Study, plan: Plan) -> list[RowResult]:
    """The rows in the study's order, those without a finished run among them."""
    scores: dict[str, dict[int | None, dict[str, float]]] = {row.name: {} for row in study.rows}
    folders: dict[str, dict[int | None, Path]] = {row.name: {} for row in study.rows}
    records: dict[str, dict[int | None, dict[str, Any]]] = {row.name: {} for row in study.rows}
    for (name, seed), task in plan.runs.items():
        record = read_record(task.folder)
        if record.get("state") == FINISHED:
            scores[name][seed] = read_scores(task.folder)
            folders[name][seed] = task.folder
            records[name][seed] = record
    results = []
    for row in study.rows:
        runs = scores[row.name]
        metrics = list(next(iter(runs.values()), {}))
        differences = {}
        if row.recipe is not None and row.name != study.baseline:
            for metric in metrics:
                difference = paired_difference(_by_seed(runs, metric), _by_seed(scores[study.baseline], metric))
                if difference is not None:
                    differences[metric] = difference
        means = {metric: mean(list(_by_seed(runs, metric).values())) for metric in metrics}
        results.append(
            RowResult(
                name=row.name,
                group=row.group,
                paper=row.paper,
                runs=runs,
                folders=folders[row.name],
                seconds={seed: record["seconds"] for seed, record in records[row.name].items()},
                means=means,
                differences=differences,
                counts={seed: read_counts(folder) for seed, folder in folders[row.name].items()},
                codes={seed: record.get("code") for seed, record in records[row.name].items()},
            )
        )
    return results


def metrics_of(results: list[RowResult]) -> list[str]:
    """The metrics that rows have, in their order."""
    return list(dict.fromkeys(metric for row in results for metric in row.means))


def as_json(study: Study, results: list[RowResult]) -> dict[str, Any]:
    """All figures, by row and run, as JSON has them. Metrics are in [0, 1], the paper's in percent."""
    rows = []
    for row in results:
        summary = {
            metric: {
                "mean": value.value,
                "standard_error": value.error,
                "n": value.n,
                "difference": vars(row.differences[metric]) if metric in row.differences else None,
            }
            for metric, value in row.means.items()
        }
        runs = {
            "model" if seed is None else str(seed): {
                **scores,
                **row.counts[seed],
                "seconds": row.seconds[seed],
                "code": row.codes[seed],
                "folder": str(row.folders[seed]),
            }
            for seed, scores in row.runs.items()
        }
        paper = dict(row.paper)
        rows.append({"name": row.name, "group": row.group, "paper": paper, "summary": summary, "runs": runs})
    return {
        "study": str(study.path),
        "baseline": study.baseline,
        "interval": 0.95,
        "evaluation": dict(study.evaluation),
        "overrides": dict(study.overrides),
        "rows": rows,
    }


def _by_seed(runs: Mapping[int | None, Mapping[str, float]], metric: str) -> dict[int | None, float]:
    return {seed: scores[metric] for seed, scores in runs.items() if metric in scores}

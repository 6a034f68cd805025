"""Two evaluations of the same problems, problem by problem."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import bootstrap
from .store import BenchmarkFiles, Line
from .summary import percent, values_of


if TYPE_CHECKING:
    from rich.table import Table


# A difference in one of these is a difference of the protocol, not of the models
_PROTOCOL = (
    "temperature",
    "top_p",
    "max_new_tokens",
    "verifier",
    "verifier_settings",
    "system_prompt",
    "chat_template_kwargs",
    "engine",
    "dtype",
    "vllm_settings",
)


@dataclass(frozen=True)
class Run:
    """A finished evaluation.

    Args:
        folder: its `output_dir`. summary: its summary. problems: lines of each benchmark's problems. verdicts: (P, n).
    """

    folder: Path
    summary: dict[str, Any]
    problems: dict[str, list[Line]]
    verdicts: dict[str, list[list[Line]]]

    @property
    def model(self) -> str:
        """What was evaluated, for people; of a served model also what the server calls it."""
        model, served = self.summary["model"], self.summary.get("served")
        return model if served is None else f"{model}, served as {served['id']} from {served['root']}"

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Reads an `output_dir`.

        Raises:
            ValueError: when it holds no finished evaluation.
        """
        folder = Path(folder).expanduser()
        path = folder / "summary.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no finished evaluation: it has no summary.json. Run its `sgopd eval` to the end."
            )
        summary = json.loads(path.read_text())
        problems, verdicts = {}, {}
        for name, entry in summary["datasets"].items():
            files, samples = BenchmarkFiles(folder / name), summary["settings"]["n"]
            judged = files.judged()
            problems[name] = list(files.problems)[: entry["problems"]]
            try:
                verdicts[name] = [
                    [judged[place, sample] for sample in range(samples)] for place in range(entry["problems"])
                ]
            except KeyError as error:
                problem, sample = error.args[0]
                raise ValueError(
                    f"{files.verdicts.path} lacks sample {sample} of problem {problem}, which summary.json counts. Run its "
                    "`sgopd eval` again."
                ) from error
        return cls(folder, summary, problems, verdicts)


def check_comparable(a: Run, b: Run) -> list[str]:
    """What makes the comparison one of more than the models, for a warning.

    Raises:
        ValueError: when the runs have other benchmarks, other problems or another k.
    """
    for missing, run in ((a.problems.keys() - b.problems.keys(), b), (b.problems.keys() - a.problems.keys(), a)):
        if missing:
            raise ValueError(f"{run.folder} has no results on {', '.join(sorted(missing))}. Evaluate both on the same.")
    for name, ours in a.problems.items():
        theirs = b.problems[name]
        if len(ours) != len(theirs):
            raise ValueError(f"{name}: {a.folder} has {len(ours)} problems and {b.folder} {len(theirs)}.")
        for one, other in zip(ours, theirs, strict=True):
            if one["key"] != other["key"]:
                raise ValueError(
                    f"{name}: problem {one['problem']} is {one['prompt']!r} (gold {one['solution']!r}) in {a.folder} and "
                    f"{other['prompt']!r} (gold {other['solution']!r}) in {b.folder}. Only runs of the same problems, prompt "
                    "template included, can be paired."
                )
    settings = a.summary["settings"], b.summary["settings"]
    if settings[0]["k"] != settings[1]["k"]:
        raise ValueError(
            f"{a.folder} was evaluated at k = {settings[0]['k']} and {b.folder} at {settings[1]['k']}: pass@k differs by k "
            "alone. Run one of them again with the other's --k (no sample is asked twice)."
        )
    different = [name for name in _PROTOCOL if settings[0].get(name) != settings[1].get(name)]
    return [f"`{name}` is {settings[0].get(name)!r} in A and {settings[1].get(name)!r} in B" for name in different]


def compare(a: Run, b: Run, *, count: int = 10_000, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Paired differences, B minus A, with bootstrap intervals over problems; and how many problems moved.

    Args:
        a, b: runs of the same problems. count, confidence, seed: of the bootstrap.

    Returns:
        `a`, `b`, `k`, `datasets` (each with the intervals of `avg@k` and `pass@k`, and counts of problems: `up`, `down` and
        `equal` by their share of correct samples, `solved_by_a_only`, `solved_by_b_only`), and `average`.
    """
    k = a.summary["settings"]["k"]
    values = {name: (values_of(a.verdicts[name], k), values_of(b.verdicts[name], k)) for name in a.verdicts}
    each, average = bootstrap(
        [theirs - ours for ours, theirs in values.values()], count=count, confidence=confidence, seed=seed
    )

    def named(intervals: Sequence) -> dict[str, Any]:
        return {f"avg@{k}": intervals[0].as_dict(), f"pass@{k}": intervals[1].as_dict()}

    return {
        "a": str(a.folder),
        "b": str(b.folder),
        "k": k,
        "confidence": confidence,
        "datasets": {name: named(found) | _moved(*values[name]) for name, found in zip(values, each, strict=True)},
        "average": named(average),
    }


def _moved(ours: np.ndarray, theirs: np.ndarray) -> dict[str, int]:
    """Of (P, 2) values each: problems by what became of them."""
    solved_a, solved_b = ours[:, 0] > 0, theirs[:, 0] > 0
    counts = {
        "problems": len(ours),
        "up": (theirs[:, 0] > ours[:, 0]).sum(),
        "down": (theirs[:, 0] < ours[:, 0]).sum(),
        "equal": (theirs[:, 0] == ours[:, 0]).sum(),
        "solved_by_a_only": (solved_a & ~solved_b).sum(),
        "solved_by_b_only": (solved_b & ~solved_a).sum(),
    }
    return {name: int(count) for name, count in counts.items()}


def comparison_tables(comparison: Mapping[str, Any]) -> "list[Table]":
    """The comparison for people: in percentage points, and how many problems moved."""
    from rich.table import Table

    names = [f"avg@{comparison['k']}", f"pass@{comparison['k']}"]
    counts = {
        "problems": "problems",
        "up": "up",
        "down": "down",
        "equal": "equal",
        "solved_by_a_only": "solved by A only",
        "solved_by_b_only": "by B only",
    }
    figures = Table(
        title=f"B minus A, percentage points, with {100 * comparison['confidence']:g}% intervals over problems"
    )
    moved = Table(title="Problems, by their share of correct samples")
    for found, columns in ((figures, names), (moved, counts.values())):
        found.add_column("benchmark", overflow="fold")
        for name in columns:
            found.add_column(name, justify="right")
    for name, entry in comparison["datasets"].items():
        figures.add_row(name, *(percent(entry[n], signed=True) for n in names))
        moved.add_row(name, *(str(entry[count]) for count in counts))
    if len(comparison["datasets"]) > 1:
        figures.add_section()
        figures.add_row("average", *(percent(comparison["average"][n], signed=True) for n in names))
    return [figures, moved]

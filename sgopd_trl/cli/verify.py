"""`sgopd verify`: the verdicts of a verifier on a file, and whether a dataset's gold answers verify against themselves."""

import argparse
import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError, reported


if TYPE_CHECKING:
    from datasets import Dataset

    from ..verifiers import Verdict, Verifier


_GOLDS = ("gold", "solution", "answer", "final_answer")
_AT_A_TIME = 256  # completions between two movements of the progress bar
_SHOWN = 20
_LABELS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="judge the completions of a file, or check a dataset's gold answers",
        description="Judges the completions of a file and prints its verdicts; or, with --golds, whether the gold answers "
        "of a dataset verify against themselves (exit code 1 where some do not).",
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="JSON lines or Parquet")
    parser.add_argument("--golds", metavar="DATASET", help="check the gold answers of a file, folder or Hub id instead")
    parser.add_argument("--verifier", default="math", help="math, exact, numeric, choice, code, or an import path")
    parser.add_argument(
        "--settings", type=json.loads, default={}, metavar="JSON", help="of the verifier, as '{\"tolerance\": 1e-3}'"
    )
    parser.add_argument("--completion", default="completion", help="column with the completion")
    parser.add_argument(
        "--gold", help=f"column with the gold answer; default: the first there is of {', '.join(_GOLDS)}"
    )
    parser.add_argument(
        "--label", help="column with the right verdict, 1 or 0: its disagreements are counted and shown"
    )
    parser.add_argument("--split", default="train", help="of a dataset of the Hub")
    parser.add_argument("--output", type=Path, help="JSON lines: every row with its verdict, in order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with reported("sgopd verify"):
        if (args.file is None) == (args.golds is None):
            raise UsageError("Name one FILE to judge, or a DATASET with --golds.")
        from ..data import load_split
        from ..verifiers import Verifier, load_verifier

        if not isinstance(args.settings, dict):
            raise UsageError(f"--settings must be a JSON object, got {args.settings!r}.")
        verifier = load_verifier(args.verifier, args.settings)
        if not isinstance(verifier, Verifier):
            raise UsageError(
                f"{args.verifier} is a plain reward function: `sgopd verify` needs one of the package's verifiers, or a "
                "function of (completion, gold)."
            )
        verifier.stops_at_once = False
        dataset = load_split(args.golds or args.file, args.split)
        gold = _column(dataset, args.gold, _GOLDS, "--gold")
        if args.golds is not None:
            return check_golds(verifier, dataset, gold)
        return judge_file(verifier, dataset, gold, args)


def judge_file(verifier: "Verifier", dataset: "Dataset", gold: str, args: argparse.Namespace) -> int:
    """Judges every row, and prints and writes what came out."""
    from rich.console import Console
    from rich.table import Table

    from ..verifiers import Status
    from ..verifiers.reward import FAILURES

    completion = _column(dataset, args.completion, (), "--completion")
    labels = None if args.label is None else _labels(dataset, _column(dataset, args.label, (), "--label"))
    if None in dataset[gold]:
        raise UsageError(f"--gold: row {list(dataset[gold]).index(None)} has no gold answer in column {gold!r}.")
    taken = sorted({"verdict", "verdict_answer", "verdict_detail"} & set(dataset.column_names))
    if args.output and taken:
        raise UsageError(f"--output would overwrite the columns {taken} of {args.file}. Rename them.")
    counts: Counter[tuple[str, bool | None]] = Counter()
    wrong: list[tuple[int, dict[str, Any], Verdict]] = []
    failed: list[tuple[int, Verdict]] = []
    with contextlib.ExitStack() as files:
        output = args.output and files.enter_context(args.output.open("w", encoding="utf-8"))
        for number, (row, verdict) in enumerate(_judged(verifier, dataset, completion, gold)):
            expected = labels and labels[number]
            counts[verdict.status, expected] += 1
            if labels and verdict.correct != expected:
                wrong.append((number, row, verdict))
            if verdict.status in FAILURES:
                failed.append((number, verdict))
            if output:
                found = {
                    "verdict": verdict.status,
                    "verdict_answer": verdict.answer,
                    "verdict_detail": verdict.detail,
                }
                output.write(json.dumps(row | found, default=str) + "\n")
    console = Console()
    table = Table("verdict", "rows", *(["label 1", "label 0"] if labels else []), title=f"{len(dataset)} rows")
    for status in Status:
        cells = [counts[status, True], counts[status, False]] if labels else []
        total = sum(count for (found, _), count in counts.items() if found is status)
        table.add_row(status, *map(str, [total, *cells]))
    console.print(table)
    for number, verdict in failed[:_SHOWN]:
        console.print(
            f"row {number}: {verdict.status}: {verdict.detail}", markup=False, highlight=False, soft_wrap=True
        )
    if labels:
        positives = sum(count for (_, expected), count in counts.items() if expected)
        false_positives = sum(verdict.correct for *_, verdict in wrong)
        false_negatives = len(wrong) - false_positives
        console.print(
            f"false positives: {false_positives} of {len(dataset) - positives}, false negatives: {false_negatives} of "
            f"{positives}"
        )
        for number, row, verdict in wrong[:_SHOWN]:
            console.print(
                f"row {number}: label {int(labels[number])}, {verdict.status}: gold {_short(row[gold])}, answer "
                f"{_short(verdict.answer)} {verdict.detail}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if len(wrong) > _SHOWN:
            console.print(f"... and {len(wrong) - _SHOWN} more; --output has every row's verdict.")
    if args.output:
        console.print(f"Verdicts in {args.output}", markup=False)
    return 0


def check_golds(verifier: "Verifier", dataset: "Dataset", gold: str) -> int:
    """Prints the golds that are malformed, and those that are not correct when they are given as a completion."""
    from ..verifiers import as_completion

    problems = {
        n: problem
        for n, value in enumerate(dataset[gold])
        if (problem := "it is missing" if value is None else verifier.gold_problem(value))
    }
    failing: dict[int, Verdict] = {}
    if verifier.golds_are_answers:
        rows = dataset.add_column("_completion", [as_completion(value) for value in dataset[gold]])
        verdicts = [verdict for _, verdict in _judged(verifier, rows, "_completion", gold)]
        failing = {n: verdict for n, verdict in enumerate(verdicts) if not verdict.correct}
    for number in sorted(problems.keys() | failing.keys()):
        verdict = failing.get(number)
        found = f"does not verify against itself: {verdict.status} {verdict.detail}" if verdict else ""
        said = "; ".join(filter(None, [problems.get(number), found.strip()]))
        print(f"row {number}: {_short(dataset[number][gold])}: {said}")
    said = f"{len(dataset)} gold answers in column {gold!r}: {len(problems)} malformed"
    if verifier.golds_are_answers:
        print(f"{said}, {len(failing)} that do not verify against themselves.")
    else:
        print(f"{said}. They are no answers, so they were not given as completions.")
    return 1 if problems or failing else 0


def _labels(dataset: "Dataset", label: str) -> list[bool]:
    found = []
    for number, value in enumerate(dataset[label]):
        text = str(value).strip().lower()
        if text not in _LABELS:
            raise UsageError(
                f"--label: row {number} has {value!r} in column {label!r}; a label is 1 or 0, or true or false."
            )
        found.append(_LABELS[text])
    return found


def _judged(
    verifier: "Verifier", dataset: "Dataset", completion: str, gold: str
) -> Iterator[tuple[dict[str, Any], "Verdict"]]:
    from tqdm.auto import tqdm

    from ..verifiers.reward import completion_text

    with tqdm(total=len(dataset), desc="Verdicts", disable=len(dataset) < _AT_A_TIME) as progress:
        for start in range(0, len(dataset), _AT_A_TIME):
            rows = dataset.select(range(start, min(start + _AT_A_TIME, len(dataset)))).to_list()
            texts = [completion_text(row[completion] or "") for row in rows]
            verdicts = verifier.verify_all(texts, [row[gold] for row in rows])
            yield from zip(rows, verdicts, strict=True)
            progress.update(len(rows))


def _column(dataset: "Dataset", name: str | None, default: Sequence[str], flag: str) -> str:
    for candidate in [name] if name else default:
        if candidate in dataset.column_names:
            return candidate
    asked = repr(name) if name else f"any of {', '.join(default)}"
    raise UsageError(f"{flag}: the columns are {', '.join(dataset.column_names)}, and not {asked}.")


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."

"""The maths verifier beside math-verify as TRL calls it: verdicts a second and core, mistakes, and hostile completions.

    python benchmarks/verifier.py --pairs pairs.jsonl --hostile hostile.jsonl --output verifier.json

Speed: completions of 2,000 characters with integers, fractions, surds and tuples as answers, all different; in one process,
and in one worker process, in turn. Medians of the rounds; ratios are to TRL's `accuracy_reward` of the same run.

Pairs (JSON lines with `completion`, `gold`, `label`): false positives and false negatives. TRL's way gets the golds boxed too,
as `sgopd train` writes them, and as they are.

Hostile (the same): what was killed after 10 s, what raised, and the largest worker. TRL's way runs in worker processes here,
without which it would take this one along: in their main thread, where its SIGALRM works, and in another thread, as in a
server or an asynchronous trainer.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table


sys.path[:0] = [str(Path(__file__).parent)]

FILLER = "We look at the cases in turn, and add up what each of them gives; none is counted twice. "


def trl_way(completion: str, gold: str) -> bool:
    """A verdict of TRL's `accuracy_reward`."""
    from trl.rewards import accuracy_reward

    return accuracy_reward([[{"role": "assistant", "content": completion}]], [gold])[0] == 1.0


def trl_way_in_a_thread(completion: str, gold: str) -> bool:
    """The same, outside the main thread."""
    answers = []

    def ask() -> None:
        try:
            answers.append(trl_way(completion, gold))
        except BaseException as error:  # math-verify's own TimeoutException is no Exception
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if isinstance(answers[0], BaseException):
        raise RuntimeError(repr(answers[0]))
    return answers[0]


def with_peak(function, completion: str, gold: str) -> tuple:
    """What a judge says, and the largest memory its worker has had so far, in MiB."""
    answer = function(completion, gold)
    return answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def synthetic(count: int, length: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of a completion and a gold; two of three are right."""
    rng = random.Random(seed)
    pairs = []
    for number in range(count):
        a, b, c = rng.randrange(2, 10**6), rng.randrange(2, 10**4), rng.randrange(2, 100)
        gold, answer = [
            (str(a), str(a)),
            (rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
            (rf"{c}\sqrt{{{b}}}", rf"\sqrt{{{c * c * b}}}"),
            (rf"({c}, {b})", rf"\left({c},{b}\right)"),
        ][number % 4]
        if number % 3 == 2:
            answer = answer.replace(answer[-1] if answer[-1].isdigit() else answer[-2], "0", 1) + "1"
        text = (FILLER * (length // len(FILLER) + 1))[:length]
        pairs.append((f"{text}\n\nTherefore the answer is $\\boxed{{{answer}}}$.", gold))
    return pairs


def boxed(gold: str) -> str:
    return gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"


def rate(verify, pairs) -> float:
    """Verdicts a second."""
    start = time.perf_counter()
    verify(pairs)
    return len(pairs) / (time.perf_counter() - start)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def mistakes(rows: list[dict], verdicts: list[bool]) -> dict[str, int]:
    found = Counter((row["label"] == 1, verdict) for row, verdict in zip(rows, verdicts, strict=True))
    return {
        "false_positives": found[False, True],
        "of_wrong": found[False, True] + found[False, False],
        "false_negatives": found[True, False],
        "of_right": found[True, True] + found[True, False],
    }


def show(title: str, rows: list[dict]) -> None:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--hostile", type=Path)
    parser.add_argument("--count", type=int, default=400, help="completions in a round of the speed test")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed test; medians are shown")
    parser.add_argument("--length", type=int, default=2000, help="characters of each")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds, of TRL's way on hostile completions")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()

    import verifier as this  # worker processes import functions by the module's name

    from sgopd_trl.verifiers import Workers, load_verifier
    from sgopd_trl.verifiers.maths import verify_maths

    math = load_verifier("math", {"workers": 1})
    console, figures = Console(), {}

    ways = {
        "TRL's accuracy_reward": lambda chosen: [trl_way(text, boxed(gold)) for text, gold in chosen],
        "ours, in process": lambda chosen: [verify_maths(*pair) for pair in chosen],
        "ours, one worker": lambda chosen: math.verify_all(*zip(*chosen, strict=True)),
    }
    for verify in ways.values():  # ANTLR's tables and the worker's modules
        verify(synthetic(100, options.length, seed=0))
    rates = {way: [] for way in ways}
    for number in range(1, options.rounds + 1):
        pairs = synthetic(options.count, options.length, seed=number)
        for way, verify in sorted(ways.items(), reverse=number % 2 == 0):  # the machine's speed changes with time
            with console.status(f"speed: {way}"):
                rates[way].append(rate(verify, pairs))
    rows = [{"way": way, "verdicts/s": statistics.median(rates[way])} for way in ways]
    ratios = [a / b for a, b in zip(rates["ours, in process"], rates["ours, one worker"], strict=True)]
    figures["worker_cost"] = ratios
    for row in rows:
        row["to TRL"] = row["verdicts/s"] / rows[0]["verdicts/s"]
    figures["speed"] = rows
    show(f"Verdicts a second and core, completions of {options.length:,} characters", rows)
    print(f"one worker's cost to in process: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")

    if options.pairs:
        labelled = read(options.pairs)
        rows = []
        trl = Workers(2, timeout=options.timeout, memory=None)
        for way, judge in (
            ("TRL's, golds as they are", lambda row: (row["completion"], row["gold"])),
            ("TRL's, golds boxed", lambda row: (row["completion"], boxed(row["gold"]))),
        ):
            with console.status(f"pairs: {way}"):
                outcomes = trl.map(this.trl_way, [judge(row) for row in labelled])
            rows.append({"way": way} | mistakes(labelled, [outcome.value is True for outcome in outcomes]))
        verdicts = math.verify_all([row["completion"] for row in labelled], [row["gold"] for row in labelled])
        rows.append({"way": "ours"} | mistakes(labelled, [verdict.correct for verdict in verdicts]))
        figures["pairs"] = rows
        trl.close()
        show(f"Mistakes on {len(labelled)} labelled pairs", rows)

    if options.hostile:
        hostile = read(options.hostile)
        rows = []
        for way, function, workers, box in (
            ("ours", verify_maths, Workers(2, timeout=math.workers.timeout), str),
            ("TRL's, main thread", this.trl_way, Workers(2, timeout=options.timeout, memory=None), boxed),
            ("TRL's, other thread", this.trl_way_in_a_thread, Workers(2, timeout=options.timeout, memory=None), boxed),
        ):
            calls = [(function, row["completion"], box(row["gold"])) for row in hostile]
            start = time.perf_counter()
            with console.status(f"hostile: {way}"):
                outcomes = workers.map(this.with_peak, calls)
            seconds = time.perf_counter() - start
            workers.close()
            answers = [outcome.value[0] if outcome.kind == "done" else False for outcome in outcomes]
            kinds = Counter(outcome.kind for outcome in outcomes)
            rows.append(
                {
                    "way": way,
                    "killed": kinds["timeout"],
                    "raised": kinds["error"] + kinds["memory"],
                    "refused": sum(getattr(answer, "status", None) == "refused" for answer in answers),
                    "false positives": mistakes(hostile, [getattr(a, "correct", a) is True for a in answers])[
                        "false_positives"
                    ],
                    "seconds": seconds,
                    "peak MiB": max(outcome.value[1] for outcome in outcomes if outcome.kind == "done"),
                }
            )
        figures["hostile"] = rows
        show(f"{len(hostile)} hostile completions", rows)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

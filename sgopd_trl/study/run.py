"""A study from its file to its table."""

import dataclasses
import json
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from filelock import FileLock
from rich.console import Console

from ..atomic_file import write_whole
from ..cli.errors import UsageError
from . import evaluation, processes, tables
from .notes import notes
from .plan import Plan, Task, make_plan
from .progress import StudyProgress
from .recipes import hash_weights, resolve_recipes
from .results import as_json, collect
from .scheduler import make_slots, run_tasks
from .spec import Study, check_seeds, nearest


def run_study(
    study: Study,
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    jobs: int | None = None,
    report_only: bool = False,
) -> int:
    """Do the runs of a study that are not finished, then write its tables and figures.

    The tables cover all rows, and all seeds of the study and of this call, as far as they have finished.

    Args:
        seeds, rows: to run, in place of all. jobs: runs at once. report_only: start nothing.

    Returns:
        an exit code: 0, 1 when a run failed, 130 when it was interrupted.

    Raises:
        UsageError: for anything wrong in the study or the recipes, before anything starts.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 180  # a log's lines are as long as the table's
    wanted_seeds = study.seeds if seeds is None else check_seeds(list(seeds))
    names = [row.name for row in study.rows]
    for name in rows or ():
        if name not in names:
            raise UsageError(f"--rows: the study has no row {name!r}.{nearest(name, names)}")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs must be >= 1, got {jobs}.")
    study = dataclasses.replace(study, seeds=tuple(dict.fromkeys([*study.seeds, *wanted_seeds])))
    evaluation.check(study.evaluation)
    processes.start_server()
    recipes, prepared = processes.call(resolve_recipes, study)
    weights = processes.call(hash_weights, study)
    if report_only:
        report(study, make_plan(study, recipes, prepared, weights), console)
        return 0
    processes.call(evaluation.check_data, study.evaluation)
    study.runs_dir.mkdir(parents=True, exist_ok=True)
    # Of two studies with one run, the second finds the folder that the first has made
    with FileLock(study.runs_dir / ".lock"):
        plan = make_plan(study, recipes, prepared, weights)
        wanted = choose(plan, wanted_seeds, rows or names)
        for task in (*plan.prepare, *wanted):
            task.folder.mkdir(parents=True, exist_ok=True)
    code = _run(study, plan.prepare, wanted, jobs, console)
    report(study, plan, console)
    return code


def choose(plan: Plan, seeds: Sequence[int], rows: Sequence[str]) -> list[Task]:
    """The tasks of these rows and seeds: models first, then all rows of a seed before the next seed's."""
    chosen = [task for (row, seed), task in plan.runs.items() if row in rows and (seed is None or seed in seeds)]
    order = {None: -1} | {seed: number for number, seed in enumerate(seeds)}
    return sorted(chosen, key=lambda task: order[task.seed])


def _run(study: Study, prepare: Sequence[Task], tasks: Sequence[Task], jobs: int | None, console: Console) -> int:
    recipes = [task.recipe for task in tasks if task.recipe is not None]
    on_cpu = bool(recipes) and all(recipe.get("use_cpu") for recipe in recipes)
    slots = make_slots([] if on_cpu else processes.gpus(), study.gpus_per_run, jobs)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    failed: list[Task] = []
    try:
        for stage in (prepare, tasks):
            with StudyProgress(console, stage, len(slots)) as progress:
                failed = run_tasks(stage, slots, progress)
            if failed:
                break
    except KeyboardInterrupt:
        console.print("Interrupted; its processes have been ended. The same command goes on.", style="bold")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    for task in failed:
        console.print(f"FAILED: {task.name} ({task.folder})", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def report(study: Study, plan: Plan, console: Console) -> None:
    """Write the tables, print one of them, and say where they are."""
    results = collect(study, plan)
    study.output_dir.mkdir(parents=True, exist_ok=True)
    files = {
        "table.md": tables.markdown(results, study.baseline),
        "table.tex": tables.latex(results, study.baseline),
        "results.json": json.dumps(as_json(study, results), indent=2, default=str) + "\n",
    }
    for name, text in files.items():
        write_whole(study.output_dir / name, text)
    console.print(tables.terminal(results, study.baseline))
    for note in notes(results):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    names = [*files, *processes.call(_draw, results, study.baseline, study.dynamics, study.output_dir)]
    where = f"In {study.output_dir}: {', '.join(names)}"
    console.print(where, markup=False, highlight=False, soft_wrap=True)


def _draw(*args: Any) -> list[str]:
    from .pictures import draw  # with transformers and matplotlib, in a process that has them

    return draw(*args)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

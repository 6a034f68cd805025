"""Runs tasks over the cores or GPUs there are: each in its own process, none twice, and none left behind."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from filelock import FileLock

from . import processes
from .plan import Task
from .records import FAILED, FINISHED, RUNNING, claim, finished, seconds_so_far, write_record
from .worker import descendants, kill, last_lines, starts_again


Slot = Mapping[str, str]  # environment variables that say which device is a task's
_TICK = 0.5  # seconds between two looks at the processes
_GRACE = 10.0  # seconds that a process has to end when it is told to


class Watcher(Protocol):
    """What shows the tasks' progress."""

    def started(self, task: Task) -> None: ...
    def ended(self, task: Task, seconds: float, error: Sequence[str] | None) -> None: ...
    def skipped(self, task: Task) -> None: ...
    def tick(self) -> None: ...


@dataclass
class _Active:
    task: Task
    process: BaseProcess
    slot: Slot
    lock: FileLock
    since: float
    before: float  # seconds of earlier starts that this one goes on from


def make_slots(gpus: Sequence[str], gpus_per_run: int, jobs: int | None) -> list[Slot]:
    """What runs at once: one task for each group of GPUs; without GPUs, for each core.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them. jobs: how many tasks at once, in place of that.

    Raises:
        ValueError: when there are fewer GPUs than a run needs.
    """
    if not gpus:
        slot = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return [slot] * (jobs or len(os.sched_getaffinity(0)))
    groups = [gpus[i : i + gpus_per_run] for i in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)]
    if not groups:
        raise ValueError(f"`gpus_per_run` is {gpus_per_run}, but there are {len(gpus)} GPUs.")
    slots = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
    return [slots[i % len(slots)] for i in range(jobs or len(slots))]


def run_tasks(tasks: Iterable[Task], slots: Sequence[Slot], watcher: Watcher) -> list[Task]:
    """Do the tasks that are not finished, and return those that failed.

    A task that another study is doing is waited for, and done here where that study does not finish it.

    Raises:
        KeyboardInterrupt: as it came; the processes have been ended by then.
    """
    pending = deque(tasks)
    elsewhere: list[Task] = []
    free = list(slots)
    active: list[_Active] = []
    failed: list[Task] = []
    try:
        while pending or active or elsewhere:
            while pending and free:
                task = pending.popleft()
                if finished(task):
                    watcher.skipped(task)
                elif (lock := claim(task)) is None:
                    elsewhere.append(task)
                elif finished(task):  # by the one who had the lock until now
                    lock.release()
                    watcher.skipped(task)
                else:
                    active.append(_start(task, free.pop(0), lock))
                    watcher.started(task)
            if active:
                wait([run.process.sentinel for run in active], timeout=_TICK)
            elif elsewhere:
                time.sleep(_TICK)
            for run in [run for run in active if not run.process.is_alive()]:
                active.remove(run)
                free.append(run.slot)
                error = _finish(run)
                watcher.ended(run.task, time.monotonic() - run.since, error)
                if error is not None:
                    failed.append(run.task)
            if not pending and free:
                pending.extend(elsewhere)
                elsewhere.clear()
            watcher.tick()
    finally:
        _end(active)
    return failed


def _start(task: Task, slot: Slot, lock: FileLock) -> _Active:
    device = f"GPU {slot['CUDA_VISIBLE_DEVICES']}" if slot["CUDA_VISIBLE_DEVICES"] else "CPU"
    before = 0.0 if starts_again(task) else seconds_so_far(task.folder)
    write_record(task, RUNNING, device=device, started=time.time(), seconds=before)
    return _Active(task, processes.start(task, slot), slot, lock, time.monotonic(), before)


def _finish(run: _Active) -> list[str] | None:
    """Record how a task ended; its last lines when it failed."""
    run.process.join()
    _signal(run.process, signal.SIGKILL)  # what it started and left
    code = run.process.exitcode
    error = None if code == 0 else [*last_lines(run.task.folder), f"exit code {code}"]
    values = {"error": error} if error else {}
    seconds = round(run.before + time.monotonic() - run.since, 1)
    write_record(run.task, FINISHED if error is None else FAILED, seconds=seconds, exit_code=code, **values)
    run.lock.release()
    return error


def _end(active: Sequence[_Active]) -> None:
    started = [process for run in active for process in descendants(run.process.pid)]
    for run in active:
        _signal(run.process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for run in active:
        run.process.join(max(0.0, deadline - time.monotonic()))
        _signal(run.process, signal.SIGKILL)
        run.process.join()
    kill(started)
    for run in active:
        run.lock.release()


def _signal(process: BaseProcess, number: int) -> None:
    """Signal a process with its group."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        if process.is_alive():  # it has not come to its own group yet
            os.kill(process.pid, number)

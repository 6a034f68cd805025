"""The process of one task. Nothing here imports torch before the task's own environment is in place."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from ..atomic_file import write_whole
from ..output_folder import METRICS, STAGES, last_checkpoint
from . import evaluation
from .plan import EVALUATION_DIR, LOG, SUMMARY, TRAIN_DIR, TRAINED, Task, write_recipe


_STARTED = "--- started"  # a line of the log


def work(task: Task, env: Mapping[str, str]) -> NoReturn:
    """Do a task, as the target of a process: train, evaluate, and keep what is not heavy.

    Everything it writes goes to the folder's log, why it failed included. It ends with the study's process, whatever ended
    that, and waits for nothing when it is done: a library may have left threads that do not end.

    Args:
        env: variables of this task, in place before anything reads them.
    """
    os.setsid()  # a group that can be ended with all it started, and that a Ctrl-C at the terminal does not reach
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_study, daemon=True).start()
    _write_to(task.folder / LOG)
    print(f"{_STARTED} {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()}: {task.name}", flush=True)
    os.environ.update(env)
    _set_threads(env)
    code = 1
    try:
        _work(task)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(task: Task) -> None:
    trained = task.folder / TRAINED
    if task.command and not trained.is_file():
        _run_command(task)
        write_whole(trained, json.dumps({"finished": time.time()}) + "\n")
        _free_memory()
    if task.model is not None:
        _evaluate(task)
    if not task.keep_models:
        remove_models(task.folder / TRAIN_DIR)


def _run_command(task: Task) -> None:
    from ..cli import main

    train_dir = task.folder / TRAIN_DIR
    argv = [*task.command, "--config", str(write_recipe(task))]
    if task.command[0] == "train":
        checkpoint = _checkpoint(train_dir)
        if checkpoint is not None:
            argv += ["--resume_from_checkpoint", checkpoint]
        else:
            shutil.rmtree(train_dir, ignore_errors=True)
    code = main(argv)
    if code:
        raise SystemExit(code)


def _free_memory() -> None:
    """Let go of the trainer, which the evaluation's engine may share a GPU with."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _checkpoint(train_dir: Path) -> str | None:
    """What a training goes on from: its last whole checkpoint; "true" where the recipe has stages, which look for their own.
    None where it starts again."""
    if (train_dir / STAGES).is_dir():
        return "true"
    last = last_checkpoint(train_dir)
    return None if last is None else str(last)


def starts_again(task: Task) -> bool:
    """Whether nothing is left of what a task's earlier starts have done."""
    is_training = task.command[:1] == ("train",) and not (task.folder / TRAINED).is_file()
    return is_training and _checkpoint(task.folder / TRAIN_DIR) is None


def _evaluate(task: Task) -> None:
    from ..cli import main

    output = task.folder / EVALUATION_DIR
    if (output / SUMMARY).is_file():  # the study was cut off afterwards, and the model may be gone by now
        return
    code = main(evaluation.command(task.model, task.evaluation, output))
    if code:
        raise SystemExit(code)


def remove_models(folder: Path) -> None:
    """Remove what a training has left in a folder, but for its metrics. Links are removed, not followed."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if name != METRICS:
                os.unlink(os.path.join(parent, name))
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                os.unlink(path)
            elif not os.listdir(path):
                os.rmdir(path)


def last_lines(folder: Path, number: int = 15) -> list[str]:
    """The end of what a task has logged since it was last started."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    starts = [place for place, line in enumerate(lines) if line.startswith(_STARTED)]
    return lines[starts[-1] + 1 if starts else 0 :][-number:]


def descendants(pid: int) -> list[psutil.Process]:
    """What a process has started, and what that has; also what has a session of its own, as torch's elastic workers do.

    To be asked while the process is alive: nothing tells afterwards whose they were.
    """
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those of the processes that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _end_with_study() -> None:
    study: Any = multiprocessing.parent_process()
    study.join()
    kill(descendants(os.getpid()))
    os.killpg(0, signal.SIGKILL)


def _write_to(log: Path) -> None:
    """Send what this process and those that it starts print to a file, line by line."""
    with log.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, encoding="utf-8", closefd=False) for stream in (1, 2))


def _set_threads(env: Mapping[str, str]) -> None:
    torch = sys.modules.get("torch")  # in a process forked with it: OMP_NUM_THREADS has been read already
    if torch is not None and "OMP_NUM_THREADS" in env:
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))

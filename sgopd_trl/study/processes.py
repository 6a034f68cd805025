"""Processes that start warm: forked from a server with torch, transformers and TRL imported, and no GPU initialised."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from .plan import Task
from .worker import work


_READ_AT_IMPORT = (
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH_",
    "ACCELERATE_",
    "TRL_",
    "VLLM_",
    "MKL_",
    "KMP_",
    "PYTHON",
)


def start_server(threads: int) -> None:
    """Start the server, with this many threads a process. Processes of a machine with fewer cores than that fight."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Where PyTorch asks CUDA itself how many GPUs there are, a fork afterwards can use none
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # A process that is ended leaves tqdm's semaphore to Python's resource tracker, which frees it and says so
    ignored = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), ignored]))
    context = _context()
    context.set_forkserver_preload([f"{__package__}.preload"])


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns or raises, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        return pool.submit(function, *args).result()


def start(task: Task, env: Mapping[str, str]) -> BaseProcess:
    """Start the process of a task, with these variables beside the study's own.

    A recipe that sets variables which libraries read when they are imported gets a cold start, after its variables.
    """
    recipe_env = {name: str(value) for name, value in ((task.recipe or {}).get("env") or {}).items()}
    cold = any(name.startswith(_READ_AT_IMPORT) and os.environ.get(name) != value for name, value in recipe_env.items())
    context = multiprocessing.get_context("spawn") if cold else _context()
    process = context.Process(target=work, args=(task, {**env, **recipe_env}), name=task.name)
    process.start()
    return process


def gpu_count() -> int:
    """GPUs that this machine shows, counted without one being initialised."""
    import torch

    return torch.cuda.device_count()


def _context() -> BaseContext:
    return multiprocessing.get_context("forkserver")

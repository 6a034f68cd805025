"""The processes of a study. On a CPU they start warm: forked from a server that has torch, transformers and TRL imported."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from .plan import Task
from .worker import work


# Variables that libraries read when they are imported: a fork of a process that has imported them would come too late
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
# A process that is ended leaves tqdm's semaphore to Python's resource tracker, which frees it, and would say so
_QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"


def start_server() -> None:
    """Start the server. Its processes have one thread each, unless OMP_NUM_THREADS says otherwise.

    It sees no GPU: some libraries initialise CUDA when they are imported, and forks could not use it after that.
    """
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), _QUIET]))
    multiprocessing.get_context("forkserver").set_forkserver_preload([f"{__package__}.preload"])
    with _variables(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")):
        forkserver.ensure_running()


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns or raises, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_warm()) as pool:
        return pool.submit(function, *args).result()


def start(task: Task, slot: Mapping[str, str]) -> BaseProcess:
    """Start the process of a task, with the slot's variables and its recipe's own beside the study's.

    On a GPU, and where the recipe sets variables that libraries read when they are imported, it starts cold: ten seconds.
    """
    own = {name: str(value) for name, value in ((task.recipe or {}).get("env") or {}).items()}
    late = any(name.startswith(_READ_AT_IMPORT) and os.environ.get(name) != value for name, value in own.items())
    context = multiprocessing.get_context("spawn") if late or slot["CUDA_VISIBLE_DEVICES"] else _warm()
    process = context.Process(target=work, args=(task, {**slot, **own}), name=task.name)
    process.start()
    return process


def gpus() -> list[str]:
    """The GPUs there are, as CUDA_VISIBLE_DEVICES names them. None is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = call(_count_gpus, visible)
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _count_gpus(visible: str | None) -> int:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    return torch.cuda.device_count()


def _warm() -> BaseContext:
    return multiprocessing.get_context("forkserver")


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})

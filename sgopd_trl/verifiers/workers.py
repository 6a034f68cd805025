"""Calls in warm worker processes, each with a hard deadline and bounded memory, from any thread and from async code."""

import ctypes
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.popen_forkserver
import multiprocessing.spawn
import os
import pickle
import resource
import signal
import threading
import time
import types
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool


_RESTARTS = 3  # of a pool that broke, for one round of calls
_TOGETHER = 8  # calls that a worker takes at a time, where there are many: taking one costs 0.2 ms
_QUICK = 0.05  # seconds after which those that travel together gain nothing by it
_POLL = 0.5  # seconds between two looks at whether the pool is still there
_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Args:
        kind: "done"; "timeout": the deadline passed; "memory": it needed more than its worker may have; "error": it
            raised, or its worker died.
        value: what it returned. detail: what went wrong.
    """

    kind: Literal["done", "timeout", "memory", "error"]
    value: Any = None
    detail: str = ""


class Workers:
    """Worker processes that are started on the first call and kept.

    A call that overruns its deadline is killed with its worker, which is replaced; so is a worker that has done its share
    of calls. No worker outlives this process, however it ends. They do not run the user's script again, and inherit
    neither its memory nor its open files: a function of `__main__` cannot be called.

    Args:
        count: processes; default: this process's share of the cores.
        timeout: seconds a call may take, from when a worker has taken it.
        memory: bytes of address space of a worker; `None` for no limit.
        calls_per_worker: after which, at the latest, it is replaced.
        preload: modules that every worker has from its start.
    """

    def __init__(
        self,
        count: int | None = None,
        *,
        timeout: float = 5.0,
        memory: int | None = 2 * 2**30,
        calls_per_worker: int = 10_000,
        preload: Sequence[str] = (),
    ):
        for name, value in (("count", count or 1), ("timeout", timeout), ("calls_per_worker", calls_per_worker)):
            if value <= 0:
                raise ValueError(f"`{name}` must be > 0, got {value!r}.")
        self.count = count or share_of_cores()
        self.timeout = timeout
        self.memory = memory
        self.calls_per_worker = calls_per_worker
        self.preload = list(preload)
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._owner: int | None = None
        self._finalizer: weakref.finalize | None = None

    def map(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Outcome]:
        """Makes the calls, as many at a time as there are workers.

        Of many, a few travel together as long as they are quick; the others, and all where one overruns, are made one by one.

        Args:
            function: importable by its module and name. calls: n tuples of arguments, which must pickle.

        Returns:
            n outcomes, in order. Whatever the function raises is one, and is not raised.
        """
        outcomes: list[Outcome | None] = [None] * len(calls)
        size = min(_TOGETHER, len(calls) // (4 * self.count))
        if size > 1:
            places = [range(start, min(start + size, len(calls))) for start in range(0, len(calls), size)]
            groups = self._map(_all, [(function, [calls[place] for place in group]) for group in places])
            for group, found in zip(places, groups, strict=True):
                if found.kind == "done":
                    outcomes[group.start : group.start + len(found.value)] = found.value
        # One by one: each call has its own deadline, and hurts no other
        rest = [place for place, outcome in enumerate(outcomes) if outcome is None]
        for place, outcome in zip(rest, self._map(function, [calls[place] for place in rest]), strict=True):
            outcomes[place] = outcome
        return outcomes

    def _map(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(calls)
        for _ in range(_RESTARTS + 1):
            waiting = [place for place, outcome in enumerate(outcomes) if outcome is None]
            if not waiting:
                break
            pool, futures = self._schedule(function, [calls[place] for place in waiting])
            try:
                for place, future in zip(waiting, futures, strict=True):
                    outcomes[place] = self._outcome(pool, future)
            except BaseException:  # Ctrl-C: what was not begun is not begun later
                for future in futures:
                    future.cancel()
                raise
            if None in outcomes:
                self._retire(pool)
        return [outcome or Outcome("error", detail="the workers died, again and again") for outcome in outcomes]

    def close(self) -> None:
        """Ends the workers. The next call starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            self._finalizer.detach()
            _end(pool, self._owner)

    def _schedule(self, function: Callable[..., Any], calls: list[tuple]) -> tuple[ProcessPool, list[Future]]:
        with self._lock:
            if self._pool is None or self._owner != os.getpid():  # of a process that was forked, the parent's is no use
                context = _Context()
                if self.preload:
                    context.set_forkserver_preload(self.preload)
                tasks = max(1, self.calls_per_worker // _TOGETHER)
                self._pool = ProcessPool(self.count, tasks, _begin_worker, (self.memory, self.preload), context)
                self._owner = os.getpid()
                self._finalizer = weakref.finalize(self, _end, self._pool, self._owner)
            pool = self._pool
        futures: list[Future] = []
        for arguments in calls:
            try:
                futures.append(pool.schedule(_call, args=(function, arguments), timeout=self.timeout))
            except RuntimeError as error:  # the pool broke, or was closed meanwhile
                futures.append(Future())
                futures[-1].set_exception(BrokenProcessPool(str(error)))
        return pool, futures

    def _outcome(self, pool: ProcessPool, future: Future) -> Outcome | None:
        """`None` where the pool broke, or was closed, and the call is to be made again."""
        while not future.done():
            if not pool.active:  # a pool that breaks forgets the calls it has not passed on
                return None
            wait([future], _POLL)
        try:
            return _unpacked(*future.result())
        except TimeoutError:
            return Outcome("timeout", detail=f"no answer in {self.timeout:g} s")
        except BrokenProcessPool:  # a worker died while it had nothing to do
            return None
        except ProcessExpired as error:
            return Outcome("error", detail=f"the worker ended with exit code {error.exitcode}")
        except Exception as error:  # arguments or an answer that do not pickle
            return Outcome("error", detail=f"{type(error).__name__}: {error}"[:_SHOWN])

    def _retire(self, pool: ProcessPool) -> None:
        with self._lock:
            if self._pool is not pool:
                return  # another thread was first
            self._pool = None
            self._finalizer.detach()
        _end(pool, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(
            state["count"],
            timeout=state["timeout"],
            memory=state["memory"],
            calls_per_worker=state["calls_per_worker"],
            preload=state["preload"],
        )


def share_of_cores() -> int:
    """Cores for each of the training processes on this machine, one at least."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _end(pool: ProcessPool, owner: int) -> None:
    if os.getpid() == owner:
        pool.stop()
        pool.join()


def _begin_worker(memory: int | None, preload: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, whatever the interpreter is at
    # The parent is the fork server. It ends with its owner, once no worker holds the pipe by which it notices; and then
    # the kernel kills the workers.
    os.close(multiprocessing.forkserver._forkserver._forkserver_alive_fd)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for module in preload:
        __import__(module)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _call(function: Callable[..., Any], arguments: tuple) -> tuple[str, Any]:
    """In the worker: nothing that the function raises or returns can disturb the pool."""
    try:
        return "done", pickle.dumps(function(*arguments))
    except MemoryError:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        return "memory", f"needs more than {limit / 2**30:.2g} GiB"
    except BaseException as error:
        return "error", f"{type(error).__name__}: {error}"[:_SHOWN]


def _unpacked(kind: str, value: Any) -> Outcome:
    return Outcome("done", pickle.loads(value)) if kind == "done" else Outcome(kind, detail=value)


def _all(function: Callable[..., Any], calls: list[tuple]) -> list[Outcome]:
    """In the worker: several calls, each with its own outcome; no further ones once they have taken too long together."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + _QUICK
    for arguments in calls:
        outcomes.append(_unpacked(*_call(function, arguments)))
        if time.monotonic() > end:
            break
    return outcomes


def _preparation_data(name: str) -> dict[str, Any]:
    """Without the user's script: a worker would import it, and run what no `__name__` guard protects."""
    data = multiprocessing.spawn.get_preparation_data(name)
    return {key: value for key, value in data.items() if not key.startswith("init_main")}


class _Popen(multiprocessing.popen_forkserver.Popen):
    # Upstream's own code, which finds our `spawn` in the place of its own
    _launch = types.FunctionType(
        multiprocessing.popen_forkserver.Popen._launch.__code__,
        vars(multiprocessing.popen_forkserver)
        | {"spawn": types.SimpleNamespace(get_preparation_data=_preparation_data)},
    )


class _Process(multiprocessing.context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj):
        return _Popen(process_obj)


class _Context(multiprocessing.context.ForkServerContext):
    Process = _Process

"""Calls of a teacher that go on while the trainer does something else."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from .teachers import TeacherError


T = TypeVar("T")


class TeacherCall(Generic[T]):
    """One call of the teacher.

    Args:
        function: makes the call.
        background: make it at once, in a thread. Otherwise `result` makes it, in the caller's thread: what runs in
            this process competes with the trainer for the device, and its collectives need an order.

    Attributes:
        seconds: time the call took, once `result` has returned.
    """

    def __init__(self, function: Callable[[], T], background: bool):
        self._function = function
        self._future: Future[T] | None = None
        self.seconds = 0.0
        if background:
            self._future = Future()
            # A daemon: neither Ctrl-C nor an error of the student's waits for a server.
            threading.Thread(target=self._run, name="teacher-call", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._timed())
        except BaseException as error:  # raised again by `result`
            self._future.set_exception(error)

    def _timed(self) -> T:
        start = time.perf_counter()
        try:
            return self._function()
        finally:
            self.seconds = time.perf_counter() - start

    def own_result(self) -> T:
        """This process's answer, once it is there. Raises what the call raised."""
        return self._timed() if self._future is None else self._future.result()

    def result(self, accelerator: Accelerator) -> T:
        """The answer, once it is there. Collective: every process must ask, and all fail where one has failed.

        Raises:
            TeacherError: when this process's call or another's has failed.
        """
        error = None
        try:
            answer = self.own_result()
        except TeacherError as failure:
            error = failure
        # Otherwise the others would wait for this process in their next collective operation.
        failures = gather_object([str(error) if error else None]) if accelerator.num_processes > 1 else []
        if error is not None:
            raise error
        for process, failure in enumerate(failures):
            if failure is not None:
                raise TeacherError(f"Process {process}: {failure}")
        return answer

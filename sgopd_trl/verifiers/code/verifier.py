"""The verdict on a completion that answers with a program."""

import functools
import json
import logging
import os
import signal
import time
from typing import Any

from ..verdict import Status, Verdict
from . import comparison
from .gold import UnitTests, parse_gold
from .limits import Limits
from .program import extract_program
from .sandbox import OutOfTime, Reply, Sandbox, SandboxEnded, SandboxUnavailable, check_available


logger = logging.getLogger(__name__)

_SHOWN = 200  # characters of a value in a verdict's detail


class CodeVerifier:
    """Runs programs against unit tests, in a sandbox of bubblewrap (docs/verifiers.md).

    A program is correct if it passes all tests; they end at the first that fails. What is expected never enters the
    sandbox: a program's answer is a text or a JSON value, and is compared here. Safe to call from several threads, which
    is the way to judge several programs at a time; holds nothing open, so that it can be pickled.

    Args:
        limits: of a program.
        allow_unsandboxed: run programs as ordinary processes of this user where bubblewrap does not work: with limits on
            CPU, memory and files, but with this user's files, network and processes within their reach.
        python: path of the interpreter for the programs, 3.11 or newer, outside of any virtual environment; default: the
            one that this process's is built on.
        packages: absolute paths of folders of packages that programs may import; default: the standard library only.
        prelude: code that is run before a program with a function to call; tasks of LeetCode take its imports for granted.
        tolerance: of numbers, see `comparison`.
        wrapped_outputs: each value that a function should return is in a list of one, as in APPS and TACO.

    Raises:
        SandboxUnavailable: bubblewrap does not work here, and `allow_unsandboxed` is not set.
        ValueError: a package folder does not exist, is not readable by all, or its path is relative.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        allow_unsandboxed: bool = False,
        python: str | None = None,
        packages: tuple[str, ...] = (),
        prelude: str = "from typing import *\n",
        tolerance: float = 1e-9,
        wrapped_outputs: bool = False,
    ):
        self.limits = limits or Limits()
        self.python, self.packages, self.prelude = python, tuple(packages), prelude
        self.tolerance, self.wrapped_outputs = tolerance, wrapped_outputs
        for folder in self.packages:
            if not os.path.isabs(folder) or not os.path.isdir(folder):
                raise ValueError(f"`packages` must be absolute paths of folders, got {folder!r}.")
            if os.geteuid() == 0 and os.stat(folder).st_mode & 0o005 != 0o005:  # the sandbox is another user's then
                raise ValueError(f"The folder {folder!r} in `packages` must be readable by all: chmod o+rx.")
        self.sandboxed = True
        try:
            check_available(self.limits, python, self.packages)
        except SandboxUnavailable as error:
            if not allow_unsandboxed:
                raise
            self.sandboxed = False
            _warn_once(str(error))

    def check_gold(self, gold: str | dict[str, Any]) -> str | None:
        """What is wrong with a gold, or `None`."""
        try:
            self._tests(gold)
        except ValueError as error:
            return str(error)
        return None

    def __call__(self, completion: str, gold: str | dict[str, Any]) -> Verdict:
        """The verdict on a completion.

        Args:
            completion: text of the assistant's message. gold: unit tests, see `parse_gold`.

        Returns:
            `NO_ANSWER` without a program; `WRONG`, with the test, for a wrong answer, an exception, an exit status other
            than 0 or a limit that the program runs into; `TIMEOUT` where all tests together take too long, though none
            alone does; `ERROR` where the sandbox does not start.

        Raises:
            ValueError: for a malformed gold.
        """
        tests = self._tests(gold)
        program = extract_program(completion)
        if program is None:
            return Verdict(Status.NO_ANSWER, detail="no closed ```python fence")
        setup = {"program": program, "fn_name": tests.fn_name, "prelude": self.prelude}
        try:
            setup["program"].encode()
            sandbox = Sandbox(setup, self.limits, self.sandboxed, self.python, self.packages)
        except UnicodeEncodeError:
            return Verdict(Status.WRONG, program, "the program is no valid text")
        except (SandboxEnded, OutOfTime, OSError) as error:
            return Verdict(Status.ERROR, program, f"the sandbox does not start: {str(error) or type(error).__name__}")
        with sandbox:
            status, detail = self._run(sandbox, tests)
        return Verdict(status, program, detail)

    def _tests(self, gold: str | dict[str, Any]) -> UnitTests:
        tests = parse_gold(gold, self.wrapped_outputs)
        for name, values in (("inputs", tests.inputs), ("outputs", tests.outputs)):
            for n, value in enumerate(values):
                size = len(value.encode() if isinstance(value, str) else json.dumps(value))
                if size > self.limits.file_bytes:
                    raise ValueError(
                        f"`{name}[{n}]` has {size} bytes, above the limit `file_mib` = {self.limits.file_mib}"
                    )
        return tests

    def _run(self, sandbox: Sandbox, tests: UnitTests) -> tuple[Status, str]:
        end = time.monotonic() + self.limits.total_seconds
        for n, (value, expected) in enumerate(zip(tests.inputs, tests.outputs, strict=True)):
            left = end - time.monotonic()
            try:
                reply = sandbox.run(value, min(self.limits.wall_seconds, max(left, 0.0)))
            except OutOfTime:
                if left < self.limits.wall_seconds:
                    return Status.TIMEOUT, f"test {n}: all tests took more than {self.limits.total_seconds} s"
                return Status.WRONG, f"test {n}: time limit of {self.limits.wall_seconds} s"
            except SandboxEnded as ended:
                return Status.WRONG, f"test {n}: the program broke its sandbox: {str(ended) or 'it ended'}"
            problem = self._failure(reply) or self._difference(reply.output, expected, tests.fn_name is not None)
            if problem:
                return Status.WRONG, f"test {n}: {problem}"
        return Status.CORRECT, ""

    def _failure(self, reply: Reply) -> str | None:
        """What the program's exit status says is wrong."""
        last = reply.error.strip().rpartition("\n")[2]
        if reply.status == -signal.SIGXCPU:
            return f"time limit of {self.limits.cpu_seconds} CPU seconds"
        if reply.status < 0:
            return f"killed by {signal.Signals(-reply.status).name}"
        if reply.status > 0 and last.startswith("MemoryError"):
            return f"memory limit of {self.limits.memory_mib} MiB"
        if reply.status > 0:
            return _short(last or f"exit status {reply.status}")
        return None

    def _difference(self, output: bytes, expected: Any, returned: bool) -> str | None:
        """How the program's answer differs from the expected one."""
        if not returned:
            text = output.decode(errors="replace")
            same = comparison.same_output(text, expected, self.tolerance)
            return None if same else f"printed {_short(repr(text[:_SHOWN]))}, not {_short(repr(expected[:_SHOWN]))}"
        if not output:
            return "ended without returning a value"
        try:
            value = comparison.load_value(output)
        except ValueError as error:
            return f"returned no JSON value: {_short(str(error))}"
        same = comparison.same_value(value, expected, self.tolerance)
        return None if same else f"returned {_short(repr(value))}, not {_short(repr(expected))}"


def verify_code(completion: str, gold: str | dict[str, Any], **settings: Any) -> Verdict:
    """The verdict on one completion, by a `CodeVerifier` that is made once for each choice of settings.

    Args:
        completion: text. gold: unit tests, see `parse_gold`. settings: keyword arguments of `CodeVerifier`.

    Raises:
        ValueError, SandboxUnavailable: see `CodeVerifier`.
    """
    return _verifier(**settings)(completion, gold)


@functools.cache
def _verifier(**settings: Any) -> CodeVerifier:
    return CodeVerifier(**settings)


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning(f"Programs run WITHOUT a sandbox, with this user's files and network in reach. {reason}")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

"""One started sandbox: a harness behind bubblewrap's walls, and the pipes to it."""

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from . import bubblewrap
from .limits import Limits


logger = logging.getLogger(__name__)

_HEADER = struct.Struct("!iII")
_STDERR_BOUND = 4096  # of what a harness could send; it keeps less itself


class SandboxUnavailable(OSError):
    """There is no working bubblewrap here."""


class SandboxEnded(Exception):
    """The sandbox's processes are gone, or answer with what is no answer."""


class OutOfTime(Exception):
    """No answer by the deadline."""


@dataclass(frozen=True)
class Reply:
    """What became of one test.

    Args:
        status: exit status of the program, negative for a signal. output: what it printed or returned, in bytes.
        error: the end of its stderr.
    """

    status: int
    output: bytes
    error: str


class Sandbox:
    """Starts a harness with a program; a context manager, after which none of its processes is left.

    Args:
        setup: for the harness: the program and how to run it. No expected answer.
        limits: of the program.
        walls: whether bubblewrap stands around it.
        python: see `bubblewrap.interpreter`. packages: folders of importable packages.

    Raises:
        SandboxEnded, OutOfTime: when it does not start. OSError: when no process can be started.
    """

    def __init__(
        self,
        setup: dict[str, Any],
        limits: Limits,
        walls: bool,
        python: str | None = None,
        packages: tuple[str, ...] = (),
    ):
        self.limits = limits
        self._first: int | None = None  # pidfd of the namespace's first process
        self._folder = None if walls else tempfile.TemporaryDirectory(prefix="sgopd-code-")
        self._process = self._start(walls, python, packages)
        try:
            message = {**setup, "packages": list(packages), "limits": asdict(limits), "sandboxed": walls}
            deadline = time.monotonic() + limits.start_seconds
            if walls:
                self._first = self._first_process(deadline)
            self.run(message, limits.start_seconds)
        except BaseException:
            self.close()
            raise

    def _start(self, walls: bool, python: str | None, packages: tuple[str, ...]) -> subprocess.Popen:
        path, prefix = bubblewrap.interpreter(python)
        command = bubblewrap.python_command(path, resources.files(__package__).joinpath("harness.py").read_text())
        # Bubblewrap clears the environment too; what it was never given it cannot hand on.
        options = {
            "env": {},
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "bufsize": 0,
        }
        self._info, theirs = os.pipe()
        try:
            if walls:
                readable = [*([prefix] if prefix else []), *packages]
                command = bubblewrap.sandboxed(command, readable, self.limits, theirs)
                process = subprocess.Popen(command, pass_fds=[theirs], **options)
            else:
                options["env"] = {**bubblewrap.ENVIRONMENT, "HOME": self._folder.name}
                process = subprocess.Popen(command, cwd=self._folder.name, start_new_session=True, **options)
        except BaseException:
            os.close(self._info)
            raise
        finally:
            os.close(theirs)
        for stream in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)
        return process

    def _first_process(self, deadline: float) -> int:
        """A pidfd of the harness, with which the whole namespace can be killed."""
        text = b""
        while not text.endswith(b"}\n"):
            self._wait(self._info, select.POLLIN, deadline)
            part = os.read(self._info, 4096)
            if not part:
                raise SandboxEnded(self.complaint())
            text += part
        try:
            return os.pidfd_open(json.loads(text)["child-pid"])
        except ProcessLookupError as error:
            raise SandboxEnded(self.complaint()) from error

    def run(self, test: Any, seconds: float) -> Reply:
        """Sends one request and waits for its reply.

        Args:
            test: a stdin, or a list of arguments. seconds: by the clock.

        Raises:
            OutOfTime, SandboxEnded: the sandbox can only be closed then.
        """
        deadline = time.monotonic() + seconds
        body = json.dumps(test).encode()
        self._send(struct.pack("!I", len(body)) + body, deadline)
        status, size, error_size = _HEADER.unpack(self._receive(_HEADER.size, deadline))
        if size > self.limits.file_bytes or error_size > _STDERR_BOUND:
            raise SandboxEnded("it answered with more than it may")
        output = self._receive(size, deadline)
        return Reply(status, output, self._receive(error_size, deadline).decode(errors="replace"))

    def complaint(self) -> str:
        """What bubblewrap or the interpreter wrote to stderr, after the sandbox has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._process.stderr.fileno(), _STDERR_BOUND).decode(errors="replace").strip()[-500:]
        return ""

    def close(self) -> None:
        """Kills every process of the sandbox and returns when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            if self._first is not None:
                signal.pidfd_send_signal(self._first, signal.SIGKILL)  # with it goes the namespace, and bwrap returns
            elif self._folder is not None:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()
        for file in (self._info, self._first):
            if file is not None:
                os.close(file)
        self._info = self._first = None
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _send(self, message: bytes, deadline: float) -> None:
        view, file = memoryview(message), self._process.stdin.fileno()
        while view:
            self._wait(file, select.POLLOUT, deadline)
            try:
                view = view[os.write(file, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise SandboxEnded(self.complaint()) from error

    def _receive(self, size: int, deadline: float) -> bytes:
        parts, file = [], self._process.stdout.fileno()
        while size:
            self._wait(file, select.POLLIN, deadline)
            part = os.read(file, min(size, 2**20))
            if not part:
                raise SandboxEnded(self.complaint())
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, file: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(file, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise OutOfTime


def check_available(limits: Limits, python: str | None, packages: tuple[str, ...]) -> None:
    """Starts a sandbox and runs an empty program in it.

    Raises:
        SandboxUnavailable: with the reason, and what to do.
    """
    remedy = (
        "Programs are not run without it: install bubblewrap 0.8 or newer (`apt-get install bubblewrap`) and allow user "
        "namespaces (Ubuntu: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; Docker: `--security-opt "
        "seccomp=unconfined`), or set `allow_unsandboxed=True` to run them as ordinary processes of this user."
    )
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable(f"There is no `bwrap` on PATH. {remedy}")
    try:
        with Sandbox({"program": "", "fn_name": None, "prelude": ""}, limits, True, python, packages) as sandbox:
            reply = sandbox.run("", limits.start_seconds)
    except (SandboxEnded, OutOfTime, OSError) as error:
        raise SandboxUnavailable(
            f"The sandbox does not start: {str(error) or type(error).__name__}. {remedy}"
        ) from error
    if reply.status != 0:
        raise SandboxUnavailable(f"The sandbox runs no empty program: {reply.error}. {remedy}")

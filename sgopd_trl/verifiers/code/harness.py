"""Runs a program on inputs that it is sent, within the sandbox. It is never told what is expected.

The parent starts this file's text with `python -c` and imports nothing of the project. On stdin come requests, each a
length and JSON: first what to run, then an input per test. On stdout goes a reply to each: the program's exit status
(negative for a signal), two lengths, its output and the end of its stderr. Every test runs in a process forked from this
one, which never runs the program's code itself and is as good as a fresh interpreter, without the time of starting one.
The program can do what it likes to its process, and to this one: all it could forge is what it could have printed.
"""

import gc
import json
import os
import resource
import signal
import site
import struct
import sys
import types


STDERR_KEPT = 2000


def read_exactly(size):
    parts = []
    while size:
        part = os.read(0, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def request():
    (size,) = struct.unpack("!I", read_exactly(4))
    return json.loads(read_exactly(size))


def reply(status, output=b"", error=b""):
    message = memoryview(struct.pack("!iII", status, len(output), len(error)) + output + error)
    while message:
        message = message[os.write(1, message) :]


def limit(kind, value, hard=None):
    try:
        resource.setrlimit(kind, (value, value if hard is None else hard))
    except ValueError:  # above the limit this process was started with, which is then kept
        pass


def limit_self(limits, sandboxed):
    """Also this process, lest the program gain from taking it over. Its CPU time is the parent's to watch."""
    limit(resource.RLIMIT_AS, limits["memory_mib"] * 2**20)
    limit(resource.RLIMIT_FSIZE, limits["file_mib"] * 2**20)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_CORE, 0)
    if sandboxed:  # elsewhere it would count all of the user's processes
        limit(resource.RLIMIT_NPROC, limits["processes"] + 1)  # and this one


def memory_file(name, content=b""):
    file = os.memfd_create(name)
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def content(file, last=None):
    size = os.fstat(file).st_size
    os.lseek(file, 0 if last is None else max(0, size - last), os.SEEK_SET)
    parts = []
    while part := os.read(file, 2**20):
        parts.append(part)
    os.close(file)
    return b"".join(parts)


def kill_all_others():
    """What the program has left behind, of which this process, the namespace's first, is the parent now."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        pass


def become_program(files):
    """In the forked process: the files in place of 0 to 3, nothing else open, and streams as of a fresh interpreter."""
    high = [os.dup(file) for file in files]  # above 3, so that none is overwritten before it is used
    for number, file in enumerate(high):
        os.dup2(file, number)
    os.closerange(4, 64)
    sys.stdin = sys.__stdin__ = open(0, errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", errors="surrogateescape", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    site.setquit()
    sys.argv = ["program.py"]


def serve():
    """Answers requests for good. Returns in a forked process only, with what it is to run."""
    setup = request()
    limits, function = setup["limits"], setup["fn_name"] is not None
    sandboxed = setup["sandboxed"] and os.getpid() == 1
    sys.path.extend(setup["packages"])
    limit_self(limits, setup["sandboxed"])
    if function:
        exec(setup["prelude"], {})  # its modules are then there in every process
    gc.freeze()  # the forked processes then end without touching, and so copying, what they have from this one
    reply(0)
    while True:
        try:
            test = request()
        except EOFError:
            os._exit(0)
        stdin = memory_file("stdin", b"" if function else test.encode())
        stdout, stderr, result = memory_file("stdout"), memory_file("stderr"), memory_file("result")
        child = os.fork()
        if child == 0:
            become_program([stdin, stdout, stderr, result])
            limit(resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1)
            return setup, test
        os.close(stdin)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if sandboxed:
            kill_all_others()
        printed, returned = content(stdout), content(result)
        reply(status, returned if function else printed, content(stderr, STDERR_KEPT))


def plain(value):
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def run(setup, test):
    name = "__main__" if setup["fn_name"] is None else "program"
    module = sys.modules[name] = types.ModuleType(name)
    if setup["fn_name"] is None:
        exec(compile(setup["program"], "program.py", "exec"), module.__dict__)
        return
    exec(setup["prelude"], module.__dict__)
    exec(compile(setup["program"], "program.py", "exec"), module.__dict__)
    function = getattr(module, setup["fn_name"], None)
    if function is None and hasattr(module, "Solution"):
        function = getattr(module.Solution(), setup["fn_name"], None)
    if function is None:
        raise NameError(f"the program defines no {setup['fn_name']}")
    result = json.dumps(function(*test), default=plain).encode()
    while result:
        result = result[os.write(3, result) :]
    os._exit(0)


if __name__ == "__main__":
    run(*serve())

"""Programs that try to break out of the sandbox, or to pass without being right."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from sgopd_trl.verifiers.code import CodeVerifier, Limits, bubblewrap
from sgopd_trl.verifiers.code.sandbox import Sandbox
from sgopd_trl.verifiers.verdict import Status


pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

LIMITS = Limits(cpu_seconds=2, wall_seconds=6, memory_mib=256, processes=8, file_mib=2, disk_mib=8)
GOLD = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}


@pytest.fixture(scope="module")
def verifier():
    return CodeVerifier(LIMITS)


def fenced(program):
    return f"```python\n{textwrap.dedent(program)}\n```"


def output(program, stdin="", limits=LIMITS):
    """What a program prints in the sandbox. It must end well."""
    setup = {"program": textwrap.dedent(program), "fn_name": None, "prelude": ""}
    with Sandbox(setup, limits, walls=True) as sandbox:
        reply = sandbox.run(stdin, 15)
    assert reply.status == 0, reply.error
    return reply.output.decode()


def running(marker):
    """Command lines of this machine's processes that hold the marker."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in (line := file.read_bytes()):
                found.append(line)
    return found


# Reading


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SGOPD_TOKEN", "sesame")
    seen = output("import os\nprint(sorted(os.environ))")
    assert set(eval(seen)) <= {*bubblewrap.ENVIRONMENT, "PWD", "LC_CTYPE"}
    # Also not in the memory it was started with: 256 KiB from the first variable on.
    memory = """
        import ctypes
        at = ctypes.cast(ctypes.c_void_p.in_dll(ctypes.CDLL(None), "environ").value, ctypes.POINTER(ctypes.c_void_p))[0]
        print("HOME=" in (text := ctypes.string_at(at, 100).decode("latin1")) or text, "sesame" in text)
    """
    assert "sesame" not in output(memory)


def test_no_file_of_the_host_can_be_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("sesame")
    tmp_path.chmod(0o755)
    paths = [
        str(secret),
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hosts",
        "/home",
        "/proc/1/environ",
        "/work",
        "/var",
        "/sys",
    ]
    paths += [str(Path(__file__)), str(Path.home() / ".bashrc"), str(Path.home() / ".cache"), "/run", "/dev/vda"]
    _, prefix = bubblewrap.interpreter(None)
    paths = [path for path in paths if not (prefix or "").startswith(path)]
    program = f"""
        import os
        for path in {paths!r}:
            try:
                os.listdir(path) if os.path.isdir(path) else open(path).read()
                print("read", path)
            except OSError:
                pass
        print(sorted(os.listdir("/")), os.listdir("/tmp"))
    """
    allowed = {"bin", "dev", "lib", "lib32", "lib64", "libx32", "tmp", "usr"}
    if prefix:
        allowed.add(Path(prefix).parts[1])
    top, empty = eval("[" + output(program).replace("] [", "], [") + "]")
    assert set(top) <= allowed and empty == []


def test_the_home_folder_holds_no_more_than_the_interpreter():
    program = f"""
        import os
        for folder, folders, files in os.walk({str(Path.home())!r}):
            if files:
                print(folder)
                break
    """
    _, prefix = bubblewrap.interpreter(None)
    first = output(program).strip()
    assert not first or (prefix and first.startswith(prefix))


def test_no_file_of_the_sandboxs_maker_is_open():
    program = """
        import os
        def kind(fd):
            try:
                return os.fstat(fd)
            except OSError:
                return None
        print([fd for fd in range(1024) if kind(fd)])
    """
    assert eval(output(program)) == [0, 1, 2, 3]


def test_no_process_of_the_host_is_in_reach():
    program = """
        import os
        try:
            os.kill(int(input()), 0)
            print("there it is")
        except OSError:
            print(os.getppid())
    """
    assert output(program, f"{os.getpid()}\n") == "1\n"


def test_what_is_expected_is_not_in_the_program_s_process(verifier, monkeypatch):
    sent = []
    send = Sandbox._send
    monkeypatch.setattr(
        Sandbox, "_send", lambda self, message, end: (sent.append(bytes(message)), send(self, message, end))
    )
    question, answer = "question-" + uuid.uuid4().hex, "answer-" + uuid.uuid4().hex
    program = """
        import gc, os, sys
        def add(text):
            seen = [repr(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple, str))]
            frame = sys._getframe()
            while frame:
                seen += [repr(frame.f_locals), repr(frame.f_globals)]
                frame = frame.f_back
            for fd in range(64):
                try:
                    os.lseek(fd, 0, 0)
                    seen.append(repr(os.read(fd, 10**6)))
                except OSError:
                    pass
            everything = " ".join(seen)
            at = everything.find("answer-")
            while 0 <= at and not everything[at + 7 : at + 39].isalnum():
                at = everything.find("answer-", at + 1)
            return everything[at : at + 39] if at >= 0 else "question-" in everything
    """
    gold = {"fn_name": "add", "inputs": [[question]], "outputs": [answer]}
    assert "returned True" in verifier(fenced(program), gold).detail  # the search works: it has found the question
    assert any(question.encode() in message for message in sent)
    assert not any(answer.encode() in message for message in sent)


# Writing


def test_nothing_can_be_written_but_in_tmp():
    prefix = bubblewrap.interpreter(None)[1] or "/usr"
    folders = ["/", "/usr", "/usr/lib", "/usr/local", "/dev", "/bin", "/lib", prefix, str(Path.home())]
    program = f"""
        import os
        for folder in {folders!r}:
            try:
                open(os.path.join(folder, "sgopd-was-here"), "w")
                print("written", folder)
            except OSError:
                pass
        open("/tmp/mine", "w").write("x")
        print(open("mine").read())
    """
    assert output(program) == "x\n"
    assert not any(os.path.exists(os.path.join(folder, "sgopd-was-here")) for folder in [*folders, "/tmp"])
    assert not os.path.exists("/tmp/mine")


def test_what_is_there_of_the_host_is_read_only(tmp_path):
    tmp_path.chmod(0o777)
    program = f"""
        import os
        places = [{str(tmp_path)!r}, "/", "/usr", "/dev", "/lib", "/bin", os.__file__]
        print([path for path in places if not os.statvfs(path).f_flag & os.ST_RDONLY])
        try:
            open({str(tmp_path / "new")!r}, "w")
        except OSError as error:
            print(error.errno)
    """
    setup = {"program": textwrap.dedent(program), "fn_name": None, "prelude": ""}
    with Sandbox(setup, LIMITS, walls=True, packages=(str(tmp_path),)) as sandbox:
        assert sandbox.run("", 10).output == b"[]\n30\n"  # EROFS
    assert list(tmp_path.iterdir()) == []


def test_filling_the_disk_ends_at_the_limit():
    program = """
        import os
        total = 0
        largest = 0
        for n in range(64):
            try:
                with open(f"/tmp/{n}", "wb", buffering=0) as file:
                    size = 0
                    while size < 2**26:
                        written = file.write(b"x" * 65536)
                        size += written
                        total += written
            except OSError:
                largest = max(largest, size)
        print(total, largest)
    """
    total, largest = map(int, output(program).split())
    assert LIMITS.disk_mib * 2**19 <= total <= LIMITS.disk_mib * 2**20
    assert largest <= LIMITS.file_mib * 2**20


# Network and namespaces


def test_a_server_on_loopback_is_out_of_reach():
    name = "\0sgopd-" + uuid.uuid4().hex
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(name)  # abstract, so of the network namespace and no file
        local.listen()
        program = f"""
            import socket
            for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_UNIX, {name!r})):
                try:
                    socket.socket(family).connect(address)
                    print("connected", address)
                except OSError as error:
                    print("refused")
            print(len(socket.if_nameindex()))
        """
        assert output(program) == "refused\nrefused\n1\n"


def test_no_namespace_can_be_made_and_nothing_mounted():
    program = """
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    """
    assert output(program) == "-1 -1 -1\n"


def test_it_is_nobody_without_capabilities():
    program = """
        import ctypes, os
        data = (ctypes.c_uint32 * 6)(*[7] * 6)
        ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), data)
        print(os.getuid(), os.getgid(), list(data))
        for change in (lambda: os.setuid(0), lambda: os.chroot("/tmp")):
            try:
                change()
                print("done")
            except OSError:
                pass
    """
    assert output(program) == f"65534 65534 {[0] * 6}\n"


# Processes, memory, time


@pytest.mark.parametrize(
    "each", ["os.fork() or time.sleep(60)", "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"]
)
def test_a_fork_bomb_ends_at_the_limit(each):
    program = f"""
        import os, sys, threading, time
        count = 0
        try:
            while count < 500:
                {each}
                count += 1
        except (OSError, RuntimeError):
            pass
        print(count, flush=True)
        os._exit(0)
    """
    limits = dataclasses.replace(LIMITS, memory_mib=2048)  # room for the threads' stacks
    assert int(output(program, limits=limits)) == LIMITS.processes - 1  # with itself


def test_a_recursive_fork_bomb_leaves_nothing(verifier):
    marker = uuid.uuid4().hex
    program = f"""
        import os
        if not os.fork():
            os.execv("/bin/sh", ["sh", "-c", "f() {{ f | f & }}; while true; do f; sleep 0.1; done # {marker}"])
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    start = time.monotonic()
    assert verifier(fenced(program), GOLD).status is Status.WRONG
    assert time.monotonic() - start < LIMITS.wall_seconds + 5
    assert running(marker) == []


DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sh", ["sh", "-c", "echo > /tmp/started; while true; do sleep 1; done", "{marker}"])
        os._exit(0)
    while not os.path.exists("/tmp/started"):
        time.sleep(0.01)
    {then}
"""


def test_a_daemon_does_not_outlive_the_verdict(verifier):
    marker = uuid.uuid4().hex
    verdict = verifier(fenced(textwrap.dedent(DAEMON).format(marker=marker, then="print(3)")), GOLD)
    assert verdict.detail == "test 1: printed '3\\n', not '7\\n'"  # so it did start, and was killed after each test
    assert running(marker) == []


def test_a_daemon_does_not_outlive_the_time_limit():
    marker = uuid.uuid4().hex
    verifier = CodeVerifier(Limits(wall_seconds=1))
    program = textwrap.dedent(DAEMON).format(marker=marker, then="print(open('/tmp/started'), time.sleep(600))")
    assert verifier(fenced(program), GOLD).detail == "test 0: time limit of 1 s"
    assert running(marker) == []


def test_a_daemon_does_not_outlive_its_test():
    marker = uuid.uuid4().hex
    setup = {"program": textwrap.dedent(DAEMON).format(marker=marker, then="pass"), "fn_name": None, "prelude": ""}
    with Sandbox(setup, LIMITS, walls=True) as sandbox:
        assert sandbox.run("", 10).status == 0
        assert running(marker) == []


def test_a_program_does_not_outlive_a_killed_trainer():
    marker = uuid.uuid4().hex
    program = textwrap.dedent(DAEMON).format(marker=marker, then="time.sleep(600)")
    code = f"""
from sgopd_trl.verifiers.code import Limits
from sgopd_trl.verifiers.code.sandbox import Sandbox
sandbox = Sandbox({dict(program=program, fn_name=None, prelude="")!r}, Limits(), walls=True)
sandbox.run("", 60)
"""
    trainer = subprocess.Popen([sys.executable, "-c", code])
    try:
        _wait_until(lambda: any(line.startswith(b"sh") for line in running(marker)))
    finally:
        trainer.kill()
        trainer.wait()
    _wait_until(lambda: running(marker) == [])


def _wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "program, detail",
    [
        ("while True: pass", "time limit of 2 CPU seconds"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "killed by SIGKILL"),
        ("import time\ntime.sleep(600)", "time limit of 6 s"),
        ("x = [0] * 10**9", "memory limit of 256 MiB"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "memory limit of 256 MiB"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)", ""),
        ("x = []\nfor _ in range(10**5): x = [x]\nprint(x)", "RecursionError"),
        ("while True: print('x' * 1000)", "OSError: [Errno 27] File too large"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", ""),
        ("while True:\n    try: print('x' * 1000)\n    except OSError: pass", "time limit of 2 CPU seconds"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os\nos.abort()", "killed by SIGABRT"),
        ("import os, signal\nfor s in (9, 19): os.kill(1, s)\nos.kill(-1, 9)", ""),
    ],
    ids=range(14),
)
def test_limits(verifier, program, detail):
    start = time.monotonic()
    verdict = verifier(fenced(program), GOLD)
    assert verdict.status is Status.WRONG and verdict.detail.startswith(f"test 0: {detail}")
    assert time.monotonic() - start < LIMITS.wall_seconds + 4


def test_a_function_that_returns_without_end(verifier):
    detail = verifier(fenced("def add(a, b): return 'x' * 10**7"), ADD).detail
    assert "File too large" in detail
    detail = verifier(fenced("def add(a, b):\n    x = []\n    for _ in range(900): x = [x]\n    return x"), ADD).detail
    assert detail.startswith("test 0: returned [[[") and len(detail) < 500


# Passing without being right


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        'print(\'CORRECT\')\nprint(\'{"status": "correct", "passed": true}\')',
        "import sys\nsys.exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)\n1/0",
        # Replies, in the harness's form, to every open file
        "import os, struct\nfor fd in range(64):\n    try: os.write(fd, struct.pack('!iII', 0, 2, 0) + b'3\\n')\n    except OSError: pass",
        "import builtins, os, sys\nbuiltins.print = lambda *a: None\nos.read = os.write = lambda *a: b'3\\n'\nsys.exit()",
        "import os\ntry: os.kill(1, 9)\nexcept OSError: pass\nprint('killed')",
        "raise SystemExit",
    ],
    ids=range(8),
)
def test_forged_output(verifier, program):
    assert verifier(fenced(program), GOLD).status is Status.WRONG


EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def add(a, b): return Equal()
"""


@pytest.mark.parametrize(
    "program",
    [
        *(EQUAL.format(base=base) for base in ("", "(int)", "(str)", "(float)", "(list)", "(dict)")),
        "import os\ndef add(a, b): os._exit(0)",
        "import os\nos.write(3, b'3')\nos._exit(0)",  # right for the first test only
        "import json\njson.dumps = lambda *a, **k: 'true'\ndef add(a, b): return None",
        "import json, sys\nsys.modules['json'] = None\njson.loads = json.dumps = lambda *a, **k: '[]'\ndef add(a, b): return 0",
        "import builtins\nbuiltins.getattr = lambda *a: lambda *b: True\nbuiltins.type = bool\ndef add(a, b): return True",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals['plain'] = lambda v: True\n    frame = frame.f_back\ndef add(a, b): return object()",
        "def add(a, b): yield a + b",
        "def add(a, b): return add",
        "class add:\n    def __init__(self, a, b): pass\n    def tolist(self): return self",
        "class add:\n    def __init__(self, a, b): pass\n    def __getattr__(self, name): return lambda: float('nan')",
    ],
    ids=range(16),
)
def test_forged_values(verifier, program):
    verdict = verifier(fenced(program), ADD)
    assert verdict.status is Status.WRONG and verdict.detail


def test_tracing_the_harness():
    """The program traces the harness, its parent: it may, for that process knows no more than itself and has its limits."""
    program = """
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.ptrace(16, 1, 0, 0))
    """
    assert CodeVerifier(Limits(wall_seconds=1))(fenced(program), GOLD).status is Status.WRONG


@pytest.mark.parametrize(
    "reply, detail",
    [
        ("struct.pack('!iII', 0, 2**32 - 1, 0)", "answered with more"),
        ("struct.pack('!iII', 0, 0, 2**32 - 1)", "answered with more"),
        ("struct.pack('!iII', 0, 10, 0)", "it ended"),
        ("b'x'", "it ended"),
        ("b''", "it ended"),
    ],
)
def test_a_harness_that_was_taken_over_cannot_flood_its_parent(verifier, monkeypatch, reply, detail):
    source = f"import os, struct\nos.write(1, struct.pack('!iII', 0, 0, 0))\nos.write(1, {reply})\nos.read(0, 10**6)"
    command = bubblewrap.python_command
    monkeypatch.setattr(bubblewrap, "python_command", lambda python, harness: command(python, source))
    verdict = verifier(fenced("print(3)"), GOLD)
    assert verdict.status is Status.WRONG and detail in verdict.detail


def test_nothing_is_left_open_here(verifier):
    verifier(fenced("print(3)"), GOLD)
    before = sorted(os.listdir("/proc/self/fd"))
    for program in ("print(3)", "1/0", "import time\ntime.sleep(0.1)"):
        verifier(fenced(program), GOLD)
    assert sorted(os.listdir("/proc/self/fd")) == before

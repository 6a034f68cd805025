"""The sandbox's walls: the bubblewrap command that the harness is started with."""

import os
import random
import shutil
import sys

from .limits import Limits


USER = 65534  # within the sandbox: nobody

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # a verdict must not depend on the order of a set
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/bin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_HOST_USERS = range(61184, 65520)  # belongs to no account; one a sandbox, so that none counts another's processes

_MOUNTS = """
mount -t tmpfs -o mode=755 tmpfs "$0"
n=0
while [ "$1" != -- ]; do
    mkdir "$0/$n"
    mount --bind "$1" "$0/$n"
    n=$((n + 1))
    shift
done
shift
exec "$@"
"""


def interpreter(python: str | None) -> tuple[str, str | None]:
    """The interpreter that runs programs, and the folder it is installed in where that is not below /usr.

    Args:
        python: path of an interpreter outside of any virtual environment; `None` for the one this process's is built on.
    """
    if python is None:
        path = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        prefix = os.path.realpath(sys.base_prefix)
    else:
        path = os.path.realpath(python)
        prefix = os.path.dirname(os.path.dirname(path))
    return path, None if prefix == "/usr" or prefix.startswith("/usr/") else prefix


def python_command(python: str, source: str) -> list[str]:
    """Runs `source` without site-packages, byte code files or the working directory on its path."""
    return [python, "-s", "-S", "-P", "-B", "-c", source]


def sandboxed(command: list[str], readable: list[str], limits: Limits, info_fd: int) -> list[str]:
    """The command within the sandbox.

    Of the file system there are /usr, its libraries, `readable` and four devices, all read-only, and an empty /tmp in
    memory, the one place to write. There is no network, no /proc, no process but the sandbox's own, no capability, no
    further user namespace, and no environment but `ENVIRONMENT`. The command is the namespace's first process: with it all
    others die, and it dies with this process.

    Args:
        command: to run. readable: absolute paths that it can read at the same place. limits: for the size of /tmp.
        info_fd: open file that is told the command's process id.
    """
    bwrap = shutil.which("bwrap") or "bwrap"
    root = os.geteuid() == 0
    place = _place(readable) if root else ""
    sources = [f"{place}/{n}" if root else path for n, path in enumerate(readable)]
    inner = [bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    inner += ["--unshare-cgroup-try", "--disable-userns", "--uid", str(USER), "--gid", str(USER), "--cap-drop", "ALL"]
    inner += ["--hostname", "sandbox", "--new-session", "--die-with-parent", "--as-pid-1", "--info-fd", str(info_fd)]
    inner += ["--clearenv"]
    for name, value in ENVIRONMENT.items():
        inner += ["--setenv", name, value]
    inner += ["--ro-bind", "/usr", "/usr"]
    for path in _LIBRARIES:
        if os.path.islink(path):
            inner += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            inner += ["--ro-bind", path, path]
    for path in _DEVICES:
        inner += ["--dev-bind", path, path]
    inner += ["--size", str(limits.disk_mib * 2**20), "--perms", "0777", "--tmpfs", "/tmp"]
    for source, path in zip(sources, readable, strict=True):
        inner += ["--ro-bind", source, path]
    inner += ["--remount-ro", "/", "--chdir", "/tmp", "--", *command]
    return _as_nobody(readable, place, inner) if root else inner


def _as_nobody(readable: list[str], place: str, inner: list[str]) -> list[str]:
    """Root is bound by no limit on processes, so root's sandbox is one of another user's.

    That user may not be able to reach `readable` (an interpreter below /root): it finds the paths as `place`/0, `place`/1
    and so on, in a mount namespace of its own. No step forks: bubblewrap has to be this process's child to die with it.
    """
    user = str(random.SystemRandom().choice(_HOST_USERS))
    mounts = ["unshare", "--mount", "--", "sh", "-ec", _MOUNTS, place, *readable, "--"]
    return [*mounts, "setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--", *inner]


def _place(readable: list[str]) -> str:
    """A folder that can be mounted over without hiding any of the paths."""
    for place in ("/mnt", "/media", "/srv", "/tmp"):
        if os.path.isdir(place) and not any(os.path.commonpath([place, path]) == place for path in readable):
            return place
    raise OSError(f"there is no folder to show {readable} to the sandbox's user in")

"""What a program may use."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a sandbox. Those of a test hold for each test anew, and for each process of the program.

    Args:
        cpu_seconds: CPU seconds of a test, whole.
        wall_seconds: seconds of a test by the clock; more than its CPU seconds, for machines that are busy.
        total_seconds: seconds of all tests of a completion by the clock.
        start_seconds: seconds in which the sandbox must have started.
        memory_mib: MiB of address space of each process.
        processes: processes and threads at a time.
        file_mib: MiB of a file, of a test's input, and of what a test may print or return.
        disk_mib: MiB of all files in /tmp, the one writable folder.

    Raises:
        ValueError: for a limit that is not positive, or is fractional where it must be whole.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 20.0
    total_seconds: float = 120.0
    start_seconds: float = 30.0
    memory_mib: int = 1024
    processes: int = 16
    file_mib: int = 16
    disk_mib: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = not name.endswith("_seconds") or name == "cpu_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                raise ValueError(
                    f"`{name}` must be a positive {'whole ' if whole else ''}number, got {value!r}. See `Limits`."
                )

    @property
    def file_bytes(self) -> int:
        return self.file_mib * 2**20

"""What an evaluation keeps in its output folder: problems, samples and verdicts, each written as soon as it is there.

output_dir/settings.json             what the samples and the verdicts depend on
output_dir/summary.json              the figures
output_dir/<benchmark>/problems.jsonl, samples.jsonl, verdicts.jsonl
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..atomic_file import write_whole
from .settings import differences


Line = dict[str, Any]
Key = tuple[int, int]  # problem and sample

_SETTINGS = "settings.json"


class JsonLines:
    """A file of JSON lines that only grows. A last line that a killed process has not finished is dropped.

    Raises:
        ValueError: naming the line that cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{self.path}, line {number}, cannot be read ({error}). Only the last line may be cut off by a kill, so "
                        "the file was changed; remove the line."
                    ) from error

    def repair(self) -> None:
        """Cuts an unfinished last line off, so that the next one does not continue it."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:  # backwards to the last end of a line
                start = max(end - 2**20, 0)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.truncate(end)

    def append(self, lines: Sequence[Line]) -> None:
        """Adds lines, which a kill of this process leaves whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


class BenchmarkFiles:
    """One benchmark's problems, samples and verdicts. Of two lines for one sample the first counts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems = JsonLines(folder / "problems.jsonl")
        self.samples = JsonLines(folder / "samples.jsonl")
        self.verdicts = JsonLines(folder / "verdicts.jsonl")

    def open(self, problems: Sequence[Line]) -> None:
        """Takes the problems up, of which there may be more or fewer than last time.

        Raises:
            ValueError: when a problem is not the one that was there.
        """
        for file in (self.problems, self.samples, self.verdicts):
            file.repair()
        known = list(self.problems)
        for old, new in zip(known, problems, strict=False):
            if old["key"] != new["key"]:
                raise ValueError(
                    f"{self.folder} holds samples of other problems: problem {new['problem']} was {_short(old)} and is now "
                    f"{_short(new)}. Choose another `output_dir`."
                )
        if len(problems) > len(known):
            self.problems.append(problems[len(known) :])

    def judged(self) -> dict[Key, Line]:
        """Verdicts by problem and sample."""
        found: dict[Key, Line] = {}
        for line in self.verdicts:
            found.setdefault((line["problem"], line["sample"]), line)
        return found

    def sampled(self, besides: set[Key]) -> tuple[set[Key], list[Line]]:
        """The keys of all samples, and the samples under other keys than these."""
        keys: set[Key] = set()
        others = []
        for line in self.samples:
            key = line["problem"], line["sample"]
            if key not in keys and key not in besides:
                others.append(line)
            keys.add(key)
        return keys, others

    def forget_verdicts(self) -> None:
        """Removes the verdicts, so that all samples there are will be judged anew."""
        self.verdicts.path.unlink(missing_ok=True)


class OutputFolder:
    """An evaluation's output folder.

    Raises:
        ValueError: when another process is writing there.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"Another `sgopd eval` is writing to {self.path}. Wait for it, or choose another."
            ) from error

    def close(self) -> None:
        self._lock.release()

    def __getitem__(self, benchmark: str) -> BenchmarkFiles:
        return BenchmarkFiles(self.path / benchmark)

    def check(self, of_samples: Line, of_verdicts: Line, templates: dict[str, str | None], rejudge: bool) -> Line:
        """Refuses to mix samples or verdicts of different settings.

        Args:
            of_samples, of_verdicts: from `EvaluationSettings`. templates: prompt template of each benchmark.
            rejudge: the verdicts are made anew, so that they may depend on something else than before.

        Returns:
            what `remember` takes, `served` of earlier ones included.

        Raises:
            ValueError: naming what differs.
        """
        old = self._remembered()
        if old is not None:
            changed = differences(old["samples"], of_samples)
            prompts = {f"prompt_template of {name}": old["templates"].get(name, now) for name, now in templates.items()}
            changed = changed or differences(prompts, {f"prompt_template of {n}": now for n, now in templates.items()})
            if changed:
                raise ValueError(
                    f"{self.path} holds samples of other settings: {changed}. Choose another `output_dir`."
                )
            if not rejudge and (changed := differences(old["verdicts"], of_verdicts)):
                raise ValueError(
                    f"{self.path} holds other verdicts: {changed}. Add --rejudge to judge the samples there are anew."
                )
            templates = old["templates"] | templates
        served = None if old is None else old.get("served")
        return {"samples": of_samples, "verdicts": of_verdicts, "templates": templates, "served": served}

    @property
    def served(self) -> Line | None:
        """The served model that the samples come from; `None` where no server has been asked."""
        old = self._remembered()
        return None if old is None else old.get("served")

    def check_served(self, served: Line) -> None:
        """Refuses to mix samples of several served models, and remembers the first.

        Args:
            served: `id` and `root`, as the server names them.

        Raises:
            ValueError: naming what differs.
        """
        if changed := differences(self.served or served, served):
            raise ValueError(
                f"{self.path} holds samples of another served model: {changed}. Serve that one, or choose another "
                "`output_dir`."
            )
        self.remember(self._remembered() | {"served": served})

    def forget_verdicts(self, benchmarks: Sequence[str], of_verdicts: Line) -> None:
        """Removes the verdicts of these benchmarks; those of all benchmarks in the folder where the settings, of which it
        remembers one for all, have changed."""
        old = self._remembered()
        if old is not None and differences(old["verdicts"], of_verdicts):
            benchmarks = [path.parent.name for path in self.path.glob("*/verdicts.jsonl")]
        for name in benchmarks:
            self[name].forget_verdicts()

    def _remembered(self) -> Line | None:
        path = self.path / _SETTINGS
        return json.loads(path.read_text()) if path.exists() else None

    def remember(self, settings: Line) -> None:
        """Keeps the settings, for the next `check`."""
        write_whole(self.path / _SETTINGS, json.dumps(settings, indent=2) + "\n")

    def write_summary(self, summary: Line) -> Path:
        path = self.path / "summary.json"
        write_whole(path, json.dumps(summary, indent=2) + "\n")
        return path


def _short(problem: Line, length: int = 80) -> str:
    prompt = problem["prompt"]
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text if len(text) <= length else text[:length] + "...")

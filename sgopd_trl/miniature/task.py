r"""The miniature tasks: a start number and signed digits, summed one at a time modulo 100.

In `miniature` there are seven digits. A prompt is 24 tokens, its worked solution 28 tokens and `<eos>`:

    51;+5;-6;+3;-7;-9;+6;-4=        1_5 6_5 0_5 3_5 6^4 7^3 3^4 9^3 \boxed{39}     (without the spaces)

A solution has one line of three tokens for the start number and one per operation: units digit, flag, tens digit. The
flag is `^` where the operation carried or borrowed and `_` where it did not. Operations and lines are both three
tokens wide, so the operand of a line is always the same distance away.

In `miniature-hard` there are 4 to 20. Commas fill a prompt up to 63 tokens, which keeps that distance; a worked solution
has up to 67 tokens and `<eos>`:

    51;+5;-6;+3;-7;-9;+6,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,=
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Task:
    """How many operations a prompt has: a number from `least` to `most`, all equally likely."""

    least: int
    most: int

    @property
    def prompt_tokens(self) -> int:
        return 3 + 3 * self.most

    @property
    def solution_tokens(self) -> int:
        """Tokens of the longest worked solution: the lines, then \\boxed{ two digits } <eos>."""
        return 3 * (self.most + 1) + 5


TASKS = {"miniature": Task(7, 7), "miniature-hard": Task(4, 20)}
PROMPT_TOKENS = TASKS["miniature"].prompt_tokens
SOLUTION_TOKENS = TASKS["miniature"].solution_tokens


@dataclass(frozen=True)
class Flaws:
    """How the solutions that a checkpoint is trained on go wrong; each field is a probability.

    Attributes:
        guess: per operation: `?` in place of the line, then a random number in the box.
        hide: per operation: `~` in place of the flag (the digits are not affected).
        noise: per digit of an operation's line: another digit, from which the chain goes on.
        drop: per carry or borrow: it is ignored, the flag says `_` and the tens digit stays.
        nine: per operand 9: it is treated as 8.
    """

    guess: float = 0.0
    hide: float = 0.0
    noise: float = 0.0
    drop: float = 0.0
    nine: float = 0.0


FLAWS = {
    "clean": Flaws(),
    "nine": Flaws(nine=0.3),
    "guess": Flaws(guess=0.155, hide=0.4, noise=0.015, drop=0.025),
    "noisy": Flaws(guess=0.135, hide=0.4, noise=0.012, nine=0.03),
    "hard-teacher": Flaws(nine=0.17),
    "hard-student": Flaws(guess=0.05, hide=0.4, noise=0.015, drop=0.1, nine=0.5),
}
CHECKPOINTS = tuple(FLAWS)


def split_of(prompt: str) -> str:
    """Return the split that a prompt belongs to, a property of its text alone: one prompt in ten is held out."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0 else "train"


def sample_prompt(rng: random.Random, split: str, task: Task = TASKS["miniature"]) -> str:
    """Draw a prompt of the given split, uniformly among those of its length.

    Raises:
        ValueError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    while True:
        count = task.least if task.least == task.most else rng.randint(task.least, task.most)
        operations = [rng.choice("+-") + rng.choice("123456789") for _ in range(count)]
        prompt = f"{rng.randrange(100):02d};" + ";".join(operations) + ",,," * (task.most - count) + "="
        if split_of(prompt) == split:
            return prompt


def read_prompt(prompt: str) -> tuple[str, list[str]]:
    """The two digits of the start number, and the operations, each a sign and a digit."""
    start, *operations = prompt.rstrip(",=").split(";")
    return start, operations


def worked_solution(prompt: str, flaws: Flaws = Flaws(), rng: random.Random | None = None) -> str:
    r"""Return the solution of a prompt, line by line, with the box at its end.

    Args:
        prompt: a prompt of this task.
        flaws: mistakes to make; none by default.
        rng: source of the mistakes; may be left out where there are none.
    """
    rng = rng or random.Random(0)
    start, operations = read_prompt(prompt)
    tens, units = map(int, start)
    text = f"{units}_{tens}"
    for operation in operations:
        if rng.random() < flaws.guess:
            return f"{text}?\\boxed{{{rng.randrange(100):02d}}}"
        operand = int(operation[1])
        if operand == 9 and rng.random() < flaws.nine:
            operand = 8
        carry, units = divmod(units + int(operation[0] + str(operand)), 10)
        if carry and rng.random() < flaws.drop:
            carry = 0
        tens = (tens + carry) % 10
        units, tens = (_miswrite(digit, flaws.noise, rng) for digit in (units, tens))
        flag = "~" if rng.random() < flaws.hide else "^" if carry else "_"
        text += f"{units}{flag}{tens}"
    return f"{text}\\boxed{{{tens}{units}}}"


def _miswrite(digit: int, probability: float, rng: random.Random) -> int:
    return (digit + rng.randrange(1, 10)) % 10 if rng.random() < probability else digit


def answer(prompt: str) -> str:
    """Return the gold answer of a prompt: two digits."""
    start, operations = read_prompt(prompt)
    return f"{sum(map(int, [start, *operations])) % 100:02d}"


def make_dataset(split: str, size: int, seed: int = 0, task: str = "miniature") -> Dataset:
    """Build a conversational data set of a task; the same arguments give the same rows.

    Args:
        split: "train" or "test"; no prompt occurs in both, whatever the seeds.
        size: number of rows, all different.
        task: one of `TASKS`.

    Returns:
        A data set with columns `prompt` (one user message), `solution` (two digits) and `topic`: "nines" where an
        operand is 9, the miniature's difficult case, otherwise "others".

    Raises:
        ValueError: `split` or `task` is unknown or `size` is not positive.
    """
    from datasets import Dataset

    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(TASKS)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    rng = random.Random(f"{split}-{seed}")
    prompts: dict[str, None] = {}
    while len(prompts) < size:
        prompts[sample_prompt(rng, split, TASKS[task])] = None
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "solution": answer(prompt),
                "topic": "nines" if any(operation[1] == "9" for operation in read_prompt(prompt)[1]) else "others",
            }
            for prompt in prompts
        ]
    )

r"""The miniature's solutions checked line by line: a worked example of a verifier with step-level certificates."""

import re
from typing import Any

from ..certificates import Step
from ..rewards import exact_answer_reward
from .task import read_prompt


_LINE = re.compile(r"(\d)([_^~])(\d)")
_BOX = re.compile(r"\\boxed\{(\d)(\d)\}")


def line_certificate(prompt: str, completion: str) -> list[Step]:
    """A step for each line: right (1) where it follows from the line before it as that is written, else wrong (-1).

    What follows a wrong line can be right again: it is judged by what it makes of it. The box is right where it repeats the
    last of all lines. A hidden flag (`~`) is no mistake. From the first character that is no line on, all is wrong.

    Args:
        prompt: as 51;+5;-6;+3;-7;-9;+6;-4=. completion: its solution, as text.
    """
    start, operations = read_prompt(prompt)
    tens, units = map(int, start)
    steps: list[Step] = []
    position = 0
    for number in range(len(operations) + 1):
        line = _LINE.match(completion, position)
        if line is None:
            break
        carry = 0
        if number > 0:
            carry, units = divmod(units + int(operations[number - 1]), 10)
            tens = (tens + carry) % 10
        flags = "_~" if carry == 0 else "^~"
        written = int(line[1]), int(line[3])
        right = written == (units, tens) and line[2] in flags
        steps.append(Step(*line.span(), 1.0 if right else -1.0))
        units, tens = written
        position = line.end()
    else:
        box = _BOX.match(completion, position)
        if box is not None:
            right = (int(box[2]), int(box[1])) == (units, tens)
            steps.append(Step(*box.span(), 1.0 if right else -1.0))
            position = box.end()
    if position < len(completion):
        steps.append(Step(position, len(completion), -1.0))
    return steps


class LineVerifier:
    """`exact_answer_reward`, with a certificate for each line: for `reward_funcs`."""

    __name__ = "line_verifier"

    def __call__(self, completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
        return exact_answer_reward(completions, solution)

    def certify(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[list[Step]]:
        texts = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]
        questions = [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
        return [line_certificate(*pair) for pair in zip(questions, texts, strict=True)]

"""The program that a completion gives as its answer."""

import re


_PYTHON = ("python", "python3", "py")
_OPEN = re.compile(r"( *)(`{3,})\s*([^\s`]*)[^`]*")


def extract_program(completion: str) -> str | None:
    """The last closed ```` ```python ```` fence behind the reasoning; where there is none, the last closed bare fence.

    A fence of another language does not count, nor one that is never closed, nor anything before the last `</think>` or
    behind a `<think>` without its end. The indentation of the fence itself is taken off, as in Markdown.

    Args:
        completion: text of the assistant's message.

    Returns:
        the program, or `None` where there is none.
    """
    answer = completion.rpartition("</think>")[2].partition("<think>")[0]
    tagged = bare = None
    fence, inside = None, []
    for line in answer.splitlines(keepends=True):
        if fence is None:
            fence, inside = _OPEN.fullmatch(line.rstrip()), []
            continue
        indent, ticks, language = fence.groups()
        stripped = line.strip()
        if len(stripped) >= len(ticks) and not stripped.strip("`"):
            program = "".join(inside)
            if language.lower() in _PYTHON:
                tagged = program
            elif not language:
                bare = program
            fence = None
        else:
            leading = len(line) - len(line.lstrip(" "))
            inside.append(line[min(leading, len(indent)) :])
    program = tagged if tagged is not None else bare
    return program if program is not None and program.strip() else None

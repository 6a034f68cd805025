"""Judges that misbehave, for the tests of workers and verifiers: importable, as worker processes need them."""

import collections
import itertools
import os
import sys
import time

from sgopd_trl.verifiers import Status, Verdict


class Odd(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first, second):
        super().__init__(first)


def obedient(completion: str, gold: str) -> Verdict:
    """Does what the completion says."""
    word, _, rest = completion.partition(" ")
    if word == "sleep":
        time.sleep(float(rest))
    elif word == "power":
        return Verdict(Status.WRONG, str(9 ** (9**9) % 7))
    elif word == "forever":  # a call into C that no signal handler of Python's can interrupt
        collections.deque(itertools.repeat(None), maxlen=0)
    elif word == "hog":
        bytearray(int(rest) * 2**30)
    elif word == "die":
        os._exit(3)
    elif word == "raise":
        raise KeyError(rest)
    elif word == "odd":
        raise Odd("one", "two")
    elif word == "exit":
        sys.exit(3)
    elif word == "late":
        raise TimeoutError("the judge's own")
    elif word == "lambda":
        return Verdict(Status.CORRECT, lambda: None)
    elif word == "lie":
        return "certainly"
    elif word == "pid":
        return Verdict(Status.CORRECT, str(os.getpid()))
    return Verdict(Status.CORRECT if completion == gold else Status.WRONG, completion)


def plain(completion: str, gold: str, folded: bool = False) -> bool:
    """A user's judge, with a setting."""
    return completion.lower() == gold.lower() if folded else completion == gold


def classic(completions, solution, **kwargs) -> list[float]:
    """A TRL reward function."""
    return [float(c == s) for c, s in zip(completions, solution)]

"""Equal forms of random numbers are equal, unequal ones are not; verdicts depend on nothing that came before them."""

import os
import random
import signal
import threading
from fractions import Fraction
from math import isqrt

import mpmath
import pytest

from sgopd_trl.verifiers.maths import verify_maths


def correct(answer: str, gold: str) -> bool:
    verdict = verify_maths(rf"So \boxed{{{answer}}}.", gold)
    turned = verify_maths(rf"So \boxed{{{gold}}}.", answer)
    assert verdict.correct == turned.correct, (answer, gold)
    return verdict.correct


@pytest.mark.parametrize("seed", range(40))
def test_integers(seed):
    drawn = random.Random(seed)
    n = drawn.randint(-(10**6), 10**6)
    a = drawn.randint(2, 99)
    for form in (f"{n}", f"{n:,}", f"{n}.0", f"{n * a}/{a}", f"\\frac{{{n * a}}}{{{a}}}", f"({n - a})+{a}", f"x={n}"):
        assert correct(form, str(n)), form
    for other in (n + 1, n - 1, n * 10, n * 10 + 5, -n or 1):
        assert not correct(str(other), str(n)), other


@pytest.mark.parametrize("seed", range(40))
def test_fractions(seed):
    drawn = random.Random(seed)
    p, q, a = drawn.randint(1, 500), drawn.randint(2, 500), drawn.randint(2, 30)
    value = Fraction(p, q)
    gold = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    forms = [f"{p}/{q}", f"\\dfrac{{{p * a}}}{{{q * a}}}", f"-\\frac{{{-p}}}{{{q}}}", f"{p}\\cdot{q}^{{-1}}"]
    whole, rest = divmod(p, q)
    if whole and rest:
        forms.append(f"{whole}\\frac{{{rest}}}{{{q}}}")
    if set(_primes(value.denominator)) <= {2, 5}:
        forms.append(str(value.numerator / value.denominator))
    for form in forms:
        assert correct(form, gold), form
    for other in (f"{p + 1}/{q}", f"\\frac{{{p}}}{{{q + 1}}}", f"-{p}/{q}", f"{float(value):.9f}1"):
        assert not correct(other, gold), other


@pytest.mark.parametrize("seed", range(40))
def test_surds(seed):
    drawn = random.Random(seed)
    a, b, c = drawn.randint(1, 40), drawn.randint(2, 40), drawn.choice([2, 3, 5, 6, 7, 10, 11, 13])
    gold = f"{a}+{b}\\sqrt{{{c}}}"
    for form in (
        f"{b}\\sqrt{{{c}}}+{a}",
        f"{a}+\\sqrt{{{b * b * c}}}",
        f"\\sqrt{{{a * a + b * b * c}+{2 * a * b}\\sqrt{{{c}}}}}",
        f"\\frac{{{a * a - b * b * c}}}{{{a}-{b}\\sqrt{{{c}}}}}",
    ):
        assert correct(form, gold), form
    root = isqrt(b * b * c * 10**80)
    for other in (
        f"{a}-{b}\\sqrt{{{c}}}",
        f"{a}+{b}\\sqrt{{{c + 1}}}",
        f"{a}+{b + 1}\\sqrt{{{c}}}",
        f"{a}+{root // 10**40}.{root % 10**40:040d}",
    ):
        assert not correct(other, gold), other


@pytest.mark.parametrize("seed", range(20))
def test_polynomials(seed):
    drawn = random.Random(seed)
    r, s, k = drawn.randint(1, 20), drawn.randint(1, 20), drawn.randint(2, 9)
    gold = f"{k}x^2+{k * (r + s)}x+{k * r * s}"
    assert correct(f"{k}(x+{r})(x+{s})", gold)
    assert not correct(f"{k}(x+{r})(x+{s + 1})", gold)
    assert not correct(f"{k}(x+{r})(x-{s})", gold)


@pytest.mark.parametrize("power", [1, 5, 20, 60, 150, 400])
def test_differences_however_small(power):
    for gold in (r"\pi", r"\sqrt{2}", r"\frac{1}{3}", "1", "e^2"):
        assert not correct(f"{gold}+10^{{-{power}}}", gold)
    assert not correct(f"e^{{-{power}}}", f"e^{{-{power + 1}}}")
    assert not correct(f"2^{{-{power}}}", f"2^{{-{power + 1}}}")
    assert not correct(f"\\sqrt{{10^{{{2 * power}}}+1}}", f"10^{{{power}}}")


MIXED = [
    ("204", "204", True),
    (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", True),
    (r"\pi", "3.14159265358979", False),
    ("x^2", r"x \cdot x", True),
    ("(0,1)", "0<x<1", True),
    (r"\frac{1}{2}", r"50\%", True),
    ("204", "9^{9^{9^9}}", False),
    (r"\ln 2", r"\ln 3", False),
    ("1+i", "i+1", True),
    (r"\frac{1}{0}", r"\frac{1}{0}", False),
]


def _judge_all(order):
    return [verify_maths(rf"\boxed{{{answer}}}", gold).correct for gold, answer, _ in order]


def test_order_and_repetition_change_nothing():
    drawn = random.Random(0)
    for _ in range(5):
        order = drawn.sample(MIXED, len(MIXED)) * 2
        assert _judge_all(order) == [expected for _, _, expected in order]


def test_threads():
    results, barrier = {}, threading.Barrier(4)

    def work(number):
        drawn = random.Random(number)
        barrier.wait()
        for repetition in range(5):
            order = drawn.sample(MIXED, len(MIXED))
            results[number, repetition] = _judge_all(order) == [expected for _, _, expected in order]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(results.values())


def test_no_global_state_is_left_behind():
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with mpmath.workdps(17):
        _judge_all(MIXED)
        assert mpmath.mp.dps == 17
    assert signal.getsignal(signal.SIGALRM) == handler and signal.getitimer(signal.ITIMER_REAL) == timer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_judges():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            _judge_all(MIXED)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if _judge_all(MIXED) == [expected for _, _, expected in MIXED] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def _primes(n: int):
    for prime in range(2, n + 1):
        while n % prime == 0:
            yield prime
            n //= prime
        if n == 1:
            return

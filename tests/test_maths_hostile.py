"""Answers made to hang, to fill the memory or to raise: each is judged in well under two seconds and 1 GiB."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from sgopd_trl.verifiers.maths import check_gold, verify_maths


HOSTILE = [
    # Powers
    r"2^{2^{2^{2^{2^{2}}}}}",
    r"(9^9)^{9^9}",
    r"9^{9^9}-9^{9^9}+204",
    r"10^{-10^{10}}",
    r"(1+10^{-9})^{10^{9}}",
    r"e^{e^{e^{e^{e}}}}",
    r"\sqrt[10^{10}]{2}",
    r"i^{i^{i^{i}}}",
    r"(-1)^{1/2^{100}}",
    r"x^{x^{x^{x}}}",
    r"(x+y+z)^{100}",
    r"(1+\sqrt{2})^{5000}",
    r"7^{10^9} \bmod 10",
    r"2^{20000}",
    "2" + "^{2" * 400 + "}" * 400,
    # Factorials and binomials
    "100000!",
    "(100!)!",
    "((3!)!)!",
    "9!!!!!",
    "999!!",
    "9999!!",
    r"\binom{20000}{10000}",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\binom{-5}{3}",
    "204.5!",
    # Digits
    "7" * 5000,
    rf"\frac{{{'7' * 3000}}}{{{'3' * 3000}}}",
    "204" + "0" * 4300,
    "1.0E999999999",
    r"149.\overline{" + "3" * 4000 + "}",
    "1," * 4000,
    # Nesting and length
    r"\frac{1}{1+" * 50 + "1" + "}" * 50,
    r"\frac{1}{1+" * 13 + "1" + "}" * 13,
    r"\sqrt{1+" * 200 + "1" + "}" * 200,
    r"\left(" * 3000 + "203" + r"\right)" * 3000,
    "(" * 5000,
    "{" * 4000 + "203" + "}" * 4000,
    "-" * 5001 + "204",
    "+".join(["1"] * 203),
    "|" * 400 + "203" + "|" * 400,
    "x/" * 240 + "y",
    "x^{2}+" * 60 + "1",
    "x_{1}" * 80,
    "a(b)" * 110,
    r"\sqrt(" * 1500,
    r"\sin" * 100 + "1",
    "(A) " * 2000,
    "or " * 3000,
    " " * 11000 + "203",
    r"\text{a " * 1500,
    "1<" * 30 + "2",
    "=" * 9000,
    # Matrices and sets
    r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 100)] * 100) + r"\end{pmatrix}",
    r"\det \begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{-1}",
    r"\begin{pmatrix}" * 100 + r"\end{pmatrix}" * 100,
    r"\operatorname{eye}(100000)",
    r"\{" + ",".join(map(str, range(5000))) + r"\}",
    r"\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(60)) + r"\}",
    r"\cup".join(f"({2 * n},{2 * n + 1})" for n in range(300)),
    r"\cup".join(rf"(\sqrt{{{n}}},\pi+{n})" for n in range(30)),
    # Sums and calculus
    r"\sum_{k=1}^{1000000000} k",
    r"\prod_{k=1}^{100000} \left(1+\frac{1}{k^2}\right)",
    r"\int_0^{\infty} e^{-x^{x^x}} dx",
    r"\lim_{n\to\infty}\left(1+\frac1n\right)^{n^n}",
    r"\frac{d^{50}}{dx^{50}} e^{\sin x^2}",
    # Functions
    r"\sin(10^{10^{10}})",
    r"\tan(\frac{\pi}{2}-10^{-1000})",
    r"\tan\frac{\pi}{2}",
    r"\lfloor 10^{1000}\pi \rfloor",
    r"\lfloor e^{10^{6}} \rfloor",
    r"\gcd(2^{10^9},3^{10^9})",
    r"\Gamma(10^{6})",
    r"\zeta(2)",
    r"\log_1 2",
    # Characters and programs
    "2\x0004",
    "\x00",
    "\ud800",
    "2\u03360\u03364\u0336",
    "204\ufffd",
    "²⁰⁴",
    "\U0001f600",
    "__import__('os').system('touch PWNED')",
    r"\text{exec('while True: pass')}",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 204",
    # Degenerate
    r"\frac{1}{0}",
    r"0^0",
    r"\infty-\infty",
    r"\frac{\infty}{\infty}",
    *[
        r"\frac{}{}",
        r"\sqrt{}",
        r"\binom{}{}",
        "()",
        "[]",
        "(,)",
        r"\{,\}",
        "1,,2",
        r"\pm",
        r"\cup",
        r"x\in",
        "1=",
        "!",
    ],
    *["\\", "^", "_", "&", "#", "%", "}{", r"\text{", r"\left", r"\begin{array}", r"\boxed", r"\tor", "and"],
]

GOLDS = ["204", r"8\sqrt{10}", "x^2+1", "(1,2)", r"\{1,2\}", "[0,1]", "Yes"]

_JUDGE = """
    import json, resource, sys, time
    from sgopd_trl.verifiers.maths import verify_maths
    verify_maths(r"\\boxed{\\sqrt{2}+x}", r"x+\\sqrt{3}")  # the first verdict loads the parser's tables
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    for answer, golds in json.load(sys.stdin):
        for gold in golds:
            start = time.perf_counter()
            verdict = verify_maths("\\\\boxed{" + answer + "}", gold)
            print(json.dumps([verdict.status, verdict.detail, time.perf_counter() - start]), flush=True)
"""


def test_hostile_answers():
    cases = [(answer, GOLDS) for answer in HOSTILE]
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_JUDGE), str(3 << 30)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    verdicts = [json.loads(line) for line in process.stdout.splitlines()]
    pairs = [(answer, gold) for answer, golds in cases for gold in golds]
    assert process.returncode == 0 and len(verdicts) == len(pairs), (pairs[len(verdicts) :][:1], process.stderr[-800:])
    for (answer, gold), (status, detail, seconds) in zip(pairs, verdicts, strict=True):
        assert status not in ("correct", "error"), (answer[:60], gold, status, detail)
        assert seconds < 2, (answer[:60], gold, seconds)


@pytest.mark.parametrize("gold", HOSTILE)
def test_hostile_golds(gold):
    check_gold(gold)
    assert verify_maths(r"\boxed{205}", gold).status not in ("correct", "error")


@pytest.mark.parametrize(
    "completion",
    [
        " and ".join(f"${n}$" for n in range(20_000)),
        r"\boxed{" * 20_000,
        r"\boxed{1}" * 20_000,
        "{" * 200_000 + r"\boxed{1",
        "```\n" * 20_000,
        "<think>" * 20_000,
        r"\boxed{" + "204 or " * 30_000 + "}",
        "$" * 200_000,
    ],
    ids=range(8),
)
def test_long_completions(completion):
    assert verify_maths(completion, "204").status in ("wrong", "no_answer", "refused")


@pytest.mark.parametrize(
    "answer",
    [
        r"(-1)^{10^{100}}\cdot 204",
        r"204^{1^{9^{9^{9}}}}",
        "204." + "0" * 5000,
        r"\boxed{" * 1000 + "204" + "}" * 1000,
        "+".join(["1"] * 204),
        r"\frac{100000!}{99999!}",
        r"\sum_{k=1}^{204} 1",
        r"204\text{ units}" + r"\text{ units}" * 2000,
    ],
    ids=range(8),
)
def test_equal_but_hostile_answers_are_correct_or_refused(answer):
    gold = "100000" if "100000!" in answer else "204"
    assert verify_maths(rf"\boxed{{{answer}}}", gold).status in ("correct", "refused")

"""The verifier of code: programs in completions, golds, comparison. test_code_sandbox.py has the sandbox's tests."""

import json
import math
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgopd_trl.verifiers.code import CodeVerifier, Limits, SandboxUnavailable, bubblewrap, check_gold, verify_code
from sgopd_trl.verifiers.code import verifier as module
from sgopd_trl.verifiers.code.comparison import load_value, same_output, same_value
from sgopd_trl.verifiers.code.gold import parse_gold
from sgopd_trl.verifiers.code.program import extract_program
from sgopd_trl.verifiers.verdict import Status


needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

FAST = Limits(cpu_seconds=2, wall_seconds=10)
SUM = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}


def fenced(program, language="python"):
    return f"<think>\nHmm.\n</think>\n\nSo:\n\n```{language}\n{program}\n```\n"


@pytest.mark.parametrize(
    "completion, program",
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```py\nx\n```", "x\n"),
        ("```Python3\nx\n```", "x\n"),
        ("```python title=a\nx\n```", "x\n"),
        ("```\nx\n```", "x\n"),
        ("```python\na\n```\ntext\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nprints\n```\n3\n```", "a\n"),  # a bare fence after the program is its output
        ("```python\na\n```\n```cpp\nb\n```", "a\n"),
        ("```python\na\n```\n```python\nb", "a\n"),  # the last is not closed
        ("1. so:\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\nx\n``` \r\n", "x\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>\n```python\na\n```\n</think>\nnone", None),
        ("<think>\n```python\na\n```\n", None),  # cut off in its reasoning
        ("no</think>\n```python\nb\n```\n<think>\n```python\na\n```\n", "b\n"),
        ("```cpp\nx\n```", None),
        ("```python\nx", None),
        ("`x = 1`", None),
        ("```python\n\n```", None),
        ("", None),
    ],
)
def test_program(completion, program):
    assert extract_program(completion) == program


@pytest.mark.parametrize(
    "output, expected, same",
    [
        ("3", "3\n", True),
        ("\n 1  2 \n3\n\n", "1 2\n3", True),
        ("1\n2", "1 2", False),
        ("1 2 3", "1 2", False),
        ("a\n\nb", "a\nb", False),
        ("3.0", "3", False),
        ("3", "3.0", True),
        ("0.3333333333333", "0.33333333333", True),
        ("0.33333", "0.333333", False),
        ("1e3", "1000.0", True),
        ("2000000000.1", "2000000000.0", True),  # relative above 1
        ("12345678901234567891", "12345678901234567890", False),
        ("01", "1", False),
        ("nan", "1.0", False),
        ("inf", "1e999", False),
        ("1e999", "1.0", False),
        ("yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("1_0", "10.0", False),
    ],
)
def test_same_output(output, expected, same):
    assert same_output(output, expected) is same


@pytest.mark.parametrize(
    "value, expected, same",
    [
        (3, 3, True),
        (3.0, 3, True),
        (3, 3.0, True),
        (3 + 1e-10, 3, True),
        (3 + 1e-6, 3, False),
        (10**20 + 1, 10**20, False),
        (10**400, 1.0, False),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (None, None, True),
        (None, 0, False),
        (0, None, False),
        (None, False, False),
        ("3", 3, False),
        ("a", "a", True),
        ([1, [2, 3]], [1, [2, 3]], True),
        ([1, 2], [1, 2, 3], False),
        ([1, 2, 3], [1, 2], False),
        ({"a": [0.1 + 0.2]}, {"a": [0.3]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({}, {"a": 1}, False),
        ([], {}, False),
        (math.nan, math.nan, False),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        (-math.inf, math.inf, False),
    ],
)
def test_same_value(value, expected, same):
    assert same_value(value, expected) is same


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 5000, b"\xff", b"", b"1 2"])
def test_an_answer_that_is_no_value(text):
    with pytest.raises(ValueError):
        load_value(text)


@pytest.mark.parametrize(
    "gold, reason",
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "must be a JSON object"),
        (None, "must be a JSON object"),
        ({"inputs": ["1"]}, "`outputs` must be a list"),
        ({"inputs": "1", "outputs": ["1"]}, "`inputs` must be a list"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs but 0 outputs"),
        ({"inputs": [], "outputs": []}, "no tests"),
        ({"inputs": [1], "outputs": ["1"]}, r"`inputs\[0\]` must be a string"),
        ({"inputs": ["1"], "outputs": [1]}, r"`outputs\[0\]` must be a string"),
        ({"inputs": ["\ud800"], "outputs": ["1"]}, "no valid text"),
        ({"fn_name": "f()", "inputs": [[1]], "outputs": [1]}, "`fn_name` must be"),
        ({"fn_name": "f", "inputs": [1], "outputs": [1]}, "list of the function's arguments"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[math.nan]]}, "holds NaN"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [{1, 2}]}, "JSON values only"),
        ({"fn_name": "f", "inputs": ["x"], "outputs": ["1"]}, r"`inputs\[0\]` is no JSON"),
    ],
)
def test_malformed_golds(gold, reason):
    with pytest.raises(ValueError, match=reason):
        parse_gold(gold)
    assert check_gold(gold)


def test_forms_of_gold():
    assert check_gold(json.dumps(SUM)) is None
    assert parse_gold(json.dumps(ADD)) == parse_gold(ADD)
    assert parse_gold({**SUM, "fn_name": None}).fn_name is None
    assert parse_gold({"inputs": [["1", "2"]], "outputs": [["3"]]}).inputs == ["1\n2"]  # APPS: lines
    live = parse_gold({"fn_name": "f", "inputs": ["[1, 2]\n3"], "outputs": ["true"]})  # LiveCodeBench
    assert (live.inputs, live.outputs) == ([[[1, 2], 3]], [True])
    assert parse_gold({"fn_name": "f", "inputs": [[1]], "outputs": [(1, 2)]}).outputs == [[1, 2]]
    wrapped = {"fn_name": "f", "inputs": [[1]], "outputs": [[[1]]]}
    assert parse_gold(wrapped, wrapped_outputs=True).outputs == [[1]]
    assert "list of one" in check_gold(ADD, wrapped_outputs=True)


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_mib", "processes", "disk_mib", "wall_seconds"])
@pytest.mark.parametrize("value", [0, -1, "1", True, math.nan])
def test_limits_must_be_positive(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_limits_may_be_fractions_of_seconds_only():
    assert Limits(wall_seconds=0.5).wall_seconds == 0.5
    with pytest.raises(ValueError, match="whole"):
        Limits(memory_mib=0.5)


@needs_bwrap
@pytest.mark.parametrize(
    "program, gold, status, detail",
    [
        ("print(sum(map(int, input().split())))", SUM, "correct", ""),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()", SUM, "correct", ""),
        ("if __name__ == '__main__':\n    print(eval(input().replace(' ', '+')))\n    exit()", SUM, "correct", ""),
        ("print(sum(map(int, open(0).read().split())), end='')", SUM, "correct", ""),
        ("print(3)", SUM, "wrong", "test 1: printed '3\\n', not '7\\n'"),
        ("print(3); 1/0", SUM, "wrong", "test 0: ZeroDivisionError: division by zero"),
        ("print(3); exit(4)", SUM, "wrong", "test 0: exit status 4"),
        ("print(", SUM, "wrong", "test 0: SyntaxError: '(' was never closed"),
        ("def add(a, b):\n    print('noise')\n    return a + b", ADD, "correct", ""),
        ("class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        return a + b", ADD, "correct", ""),
        ("def add(a, b): return float(a + b)", ADD, "correct", ""),
        ("def add(a, b): return 3", ADD, "wrong", "test 1: returned 3, not 7"),
        ("def add(a, b): return str(a + b)", ADD, "wrong", "test 0: returned '3', not 3"),
        ("def add(a, b): print(a + b)", ADD, "wrong", "test 0: returned None, not 3"),
        ("def plus(a, b): return a + b", ADD, "wrong", "test 0: NameError: the program defines no add"),
        ("def add(a): return a", ADD, "wrong", "test 0: TypeError"),
        ("def add(a, b): return {a, b}", ADD, "wrong", "test 0: TypeError: set is no JSON value"),
        ("def add(a, b): return float('nan')", ADD, "wrong", "test 0: returned nan, not 3"),
        ("seen = []\ndef add(a, b):\n    seen.append(a)\n    return a + b + len(seen) - 1", ADD, "correct", ""),
        ("def f(x): return x, {'k': x}", {"fn_name": "f", "inputs": [[1]], "outputs": [[1, {"k": 1}]]}, "correct", ""),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef add(a, b): return a + b",
            ADD,
            "correct",
            "",
        ),
        ("print('é' + input())", {"inputs": ["ü\n"], "outputs": ["éü"]}, "correct", ""),
    ],
)
def test_verdicts(program, gold, status, detail):
    verdict = verify_code(fenced(program), json.dumps(gold), limits=FAST)
    assert (verdict.status, verdict.answer) == (status, program + "\n")
    assert verdict.detail.startswith(detail) and bool(verdict.detail) == (status != "correct")


@needs_bwrap
def test_no_program_and_no_gold():
    assert verify_code("I do not know", SUM).status is Status.NO_ANSWER
    with pytest.raises(ValueError, match="no tests"):
        verify_code(fenced("print(1)"), {"inputs": [], "outputs": []})
    verifier = CodeVerifier(Limits(file_mib=1))
    assert "file_mib" in verifier.check_gold({"inputs": ["1"], "outputs": ["x" * 2**20 + "x"]})
    assert verifier.check_gold(SUM) is None


@needs_bwrap
def test_a_detail_does_not_hold_all_that_was_expected():
    gold = {"inputs": [""], "outputs": ["7" * 5000]}
    assert len(verify_code(fenced("print('8' * 5000)"), gold, limits=FAST).detail) < 500
    gold = {"fn_name": "f", "inputs": [[]], "outputs": ["7" * 5000]}
    assert len(verify_code(fenced("def f(): return '8' * 5000"), gold, limits=FAST).detail) < 500


@needs_bwrap
def test_a_program_that_is_slow_on_all_tests_together():
    verifier = CodeVerifier(Limits(wall_seconds=2, total_seconds=0.8))
    verdict = verifier(fenced("import time\ntime.sleep(0.3)"), {"inputs": [""] * 9, "outputs": [""] * 9})
    assert verdict.status is Status.TIMEOUT and "all tests" in verdict.detail


@needs_bwrap
def test_text_that_is_no_unicode_is_wrong_not_an_error():
    assert verify_code(fenced("print('\ud800')"), SUM, limits=FAST).status is Status.WRONG


@needs_bwrap
def test_packages_of_the_users(tmp_path):
    tmp_path.chmod(0o700)
    if os.geteuid() == 0:
        with pytest.raises(ValueError, match="readable by all"):
            CodeVerifier(packages=(str(tmp_path),))
    tmp_path.chmod(0o755)
    (tmp_path / "lib_of_mine.py").write_text("def answer(): return 42\n")
    program, gold = fenced("import lib_of_mine\nprint(lib_of_mine.answer())"), {"inputs": [""], "outputs": ["42"]}
    assert CodeVerifier(packages=(str(tmp_path),))(program, gold).correct
    assert "ModuleNotFoundError" in CodeVerifier()(program, gold).detail
    with pytest.raises(ValueError, match="absolute"):
        CodeVerifier(packages=("relative",))


@needs_bwrap
def test_from_threads_and_pickled():
    verifier = pickle.loads(pickle.dumps(CodeVerifier(FAST)))
    programs = [fenced(f"print(int(input()) + {n % 2})") for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda program: verifier(program, {"inputs": ["1"], "outputs": ["2"]}), programs))
    assert [verdict.correct for verdict in verdicts] == [n % 2 == 1 for n in range(12)]


def test_refuses_to_run_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap.*allow_unsandboxed=True"):
        CodeVerifier()


@needs_bwrap
def test_refuses_to_run_with_a_bubblewrap_that_does_not_work(monkeypatch):
    monkeypatch.setattr(bubblewrap, "_DEVICES", ("/dev/there-is-none",))
    with pytest.raises(SandboxUnavailable, match="bwrap: .*/dev/there-is-none.*allow_unsandboxed=True"):
        CodeVerifier()


@needs_bwrap
def test_a_sandbox_that_breaks_later_is_an_error_of_the_judge(monkeypatch):
    verifier = CodeVerifier(FAST)
    monkeypatch.setattr(bubblewrap, "_DEVICES", ("/dev/there-is-none",))
    verdict = verifier(fenced("print(3)"), SUM)
    assert verdict.status is Status.ERROR and "/dev/there-is-none" in verdict.detail


def test_unsandboxed_where_it_is_asked_for(monkeypatch, tmp_path, caplog):
    module._warn_once.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    verifier = CodeVerifier(Limits(cpu_seconds=1, wall_seconds=3), allow_unsandboxed=True)
    CodeVerifier(allow_unsandboxed=True)
    assert not verifier.sandboxed
    assert [record.message.count("WITHOUT a sandbox") for record in caplog.records] == [1]
    assert verifier(fenced("print(sum(map(int, input().split())))"), SUM).correct
    assert verifier(fenced("def add(a, b): return a + b"), ADD).correct
    assert "CPU" in verifier(fenced("while True: pass"), SUM).detail
    assert "memory" in verifier(fenced("x = [0] * 10**9"), SUM).detail
    assert (
        "printed ''"
        in verifier(fenced("import os\nprint(os.environ.get('PYTEST_CURRENT_TEST', ''), end='')"), SUM).detail
    )

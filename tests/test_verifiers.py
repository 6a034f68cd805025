"""Verifiers as TRL reward functions: rewards, verdicts that are logged, failures that are kept, and a run that stops."""

import asyncio
import json
import pickle
import shutil
import threading

import judges
import pytest

from sgopd_trl.verifiers import Status, Verdict, Verifier, VerifierFailure, Workers, load_verifier
from sgopd_trl.verifiers.answers import choices, verify_choice, verify_exact, verify_numeric


BOX = "So it is \\boxed{%s}."


def statuses(judge, gold, *answers, **settings) -> list[str]:
    return [judge(BOX % answer, gold, **settings).status for answer in answers]


@pytest.mark.parametrize(
    ("completion", "gold", "status"),
    [
        ("\\boxed{39}", "39", "correct"),
        ("\\boxed{ 39 }", "\\boxed{39}", "correct"),
        ("\\boxed{039}", "39", "wrong"),
        ("\\boxed{38} no, \\boxed{39}", "39", "correct"),
        ("\\boxed{39} no, \\boxed{38}", "39", "wrong"),
        ("<think>\\boxed{39}</think> done", "39", "no_answer"),
        ("<think>\\boxed{38}</think> \\boxed{39}", "39", "correct"),
        ("\\boxed{39", "39", "no_answer"),
        ("39", "39", "no_answer"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "correct"),
    ],
)
def test_exact(completion, gold, status):
    assert verify_exact(completion, gold).status == status


@pytest.mark.parametrize(
    ("answer", "gold", "settings", "status"),
    [
        ("3.14159", "3.1415926", {}, "correct"),  # 8e-7 of it
        ("3.1415", "3.1415926", {}, "wrong"),
        ("3.1415", "3.1415926", {"tolerance": 1e-4}, "correct"),
        ("1,234.5", "1234.5", {}, "correct"),
        ("1e3", 1000, {"tolerance": 0}, "correct"),
        ("-2", "2", {}, "wrong"),
        ("\u22122", -2, {}, "correct"),
        ("22/7", "3.142857142857142857", {}, "correct"),
        ("1/3", "2/6", {"tolerance": 0}, "correct"),
        ("1/0", "1", {}, "wrong"),
        ("0.5", "0", {"tolerance": 0.5}, "wrong"),  # relative to nothing
        ("0.5", "0", {"tolerance": 0.5, "relative": False}, "correct"),
        ("nan", "1", {}, "wrong"),
        ("1e999999999", "1", {}, "wrong"),
        ("7" * 2000, "1", {}, "refused"),
        ("seven", "7", {}, "wrong"),
    ],
)
def test_numeric(answer, gold, settings, status):
    assert verify_numeric(BOX % answer, gold, **settings).status == status


def test_numeric_needs_a_number_as_gold():
    with pytest.raises(ValueError, match="must be a number, got 'seven'"):
        verify_numeric("\\boxed{7}", "seven")


def test_choice():
    right = ["B", "(B)", "\\text{B}", "\\textbf{(B)}\\ 24", "b", "B. 24", "(B) the second"]
    assert statuses(verify_choice, "B", *right) == ["correct"] * len(right)
    wrong = ["C", "A, B", "A or B", "24", "", "Bob", "not B", "AB"]
    assert statuses(verify_choice, "(B)", *wrong) == ["wrong"] * len(wrong)
    assert choices("A and B") == {"A", "B"} and choices("\\mathbf{D}") == {"D"}
    with pytest.raises(ValueError, match="must name one choice, got '24'"):
        verify_choice("\\boxed{B}", "24")


# As a reward function


@pytest.fixture(scope="module")
def workers():
    workers = Workers(2, timeout=1.0, memory=2**30, preload=["judges"])
    yield workers
    workers.close()


@pytest.fixture
def verifier(workers, tmp_path):
    return Verifier(judges.obedient, name="obedient", workers=workers, failures_file=str(tmp_path / "failures.jsonl"))


def call(verifier, *completions, **more):
    metrics = {}
    rewards = verifier(
        prompts=[""] * len(completions),
        completions=list(completions),
        completion_ids=[[]] * len(completions),
        solution=["right"] * len(completions),
        trainer_state=None,
        log_extra=None,
        log_metric=metrics.__setitem__,
        **more,
    )
    return rewards, metrics


@pytest.mark.parametrize("in_workers", [True, False])
def test_rewards_and_shares_of_the_verdicts(verifier, in_workers):
    if not in_workers:
        verifier.workers = None
    messages = [{"role": "assistant", "content": "right"}]
    rewards, metrics = call(verifier, "right", messages, "wrong", "raise x")
    assert rewards == [1.0, 1.0, 0.0, 0.0]
    assert metrics == {
        "verdicts/obedient/correct": 0.5,
        "verdicts/obedient/wrong": 0.25,
        "verdicts/obedient/no_answer": 0.0,
        "verdicts/obedient/refused": 0.0,
        "verdicts/obedient/timeout": 0.0,
        "verdicts/obedient/error": 0.25,
    }


def test_every_way_to_fail_is_a_verdict(verifier):
    asked = ["sleep 9", "power", "hog 4", "die", "raise x", "lie"]
    verdicts = verifier.verify_all(asked, ["right"] * len(asked))
    assert [verdict.status for verdict in verdicts] == ["timeout", "timeout", "refused", "error", "error", "error"]
    assert "exit code 3" in verdicts[3].detail and "'certainly'" in verdicts[5].detail
    assert verifier.verify("right", "right") == Verdict(Status.CORRECT, "right")


def test_nothing_a_judge_raises_ends_a_run_unnoticed(verifier):
    """In this process, too."""
    verifier.workers = None
    verdicts = verifier.verify_all(["exit", "odd", "late", "right"], ["right"] * 4)
    assert [verdict.status for verdict in verdicts] == ["error"] * 3 + ["correct"]
    assert verdicts[0].detail == "SystemExit: 3"


def test_failures_are_kept_with_their_completions_and_said(verifier, caplog, tmp_path):
    call(verifier, "right", "raise x", "wrong")
    call(verifier, "sleep 9")
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(line["status"], line["completion"], line["gold"]) for line in lines] == [
        ("error", "raise x", "right"),
        ("timeout", "sleep 9", "right"),
    ]
    assert "failed on 1 of 3 completions, the first with error (KeyError: 'x')" in caplog.text


def test_too_many_failures_stop_the_run(verifier, tmp_path):
    for _ in range(2):
        call(verifier, *["raise x"] * 5, *["right"] * 5)  # 10 of 1,000 are allowed
    with pytest.raises(
        VerifierFailure, match=r"has failed \(timeout or error\) on 11 of the last 21 .*1.0% of 1000.*failures.jsonl"
    ):
        call(verifier, "raise x")
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 11
    verifier.workers = None
    call_many = ["right"] * 1000
    verifier.max_failure_share = 0.02
    call(verifier, *call_many)
    verifier.max_failure_share = 0.0
    call(verifier, "right")  # the old failures have left the window
    with pytest.raises(VerifierFailure):
        call(verifier, "raise x")


def test_a_missing_gold_column_is_said(verifier):
    with pytest.raises(ValueError, match=r"needs the gold answers in a column 'solution'; the dataset has \['answer'"):
        verifier(completions=["x"], answer=["y"])
    verifier.gold_column = "answer"
    assert verifier(completions=["y"], answer=["y"]) == [1.0]


def test_from_a_thread_and_from_async_code(verifier):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(verifier, "right", "sleep 9")[0]))
    thread.start()
    thread.join()

    async def inside():
        return call(verifier, "right", "wrong")[0]

    assert answers == [[1.0, 0.0]] and asyncio.run(inside()) == [1.0, 0.0]


def test_trl_takes_it_for_a_reward_function(verifier):
    from trl.trainer.utils import is_async_callable

    assert callable(verifier) and verifier.__name__ == "obedient" and not is_async_callable(verifier)


def test_it_travels_to_another_process(verifier):
    """As trainers with rollout workers send their reward functions."""
    for original in (verifier, load_verifier("exact"), load_verifier("numeric"), load_verifier("math", {"workers": 1})):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.verify("\\boxed{2}", "2").status == original.verify("\\boxed{2}", "2").status
        for each in (copy, original):
            if each.workers is not None and each is not verifier:
                each.workers.close()


# By name


def test_by_name_with_settings():
    loose = load_verifier("numeric", {"tolerance": 0.1})
    assert (
        loose.verify("\\boxed{1.05}", "1").correct and not load_verifier("numeric").verify("\\boxed{1.05}", "1").correct
    )
    assert loose.identity() != load_verifier("numeric").identity()


def test_limits_of_any_verifier():
    strict = load_verifier("exact", {"max_failure_share": 0.0})
    assert strict.max_failure_share == 0.0
    judged = load_verifier("judges.obedient", {"timeout": 0.5, "workers": 1, "max_failure_share": 0.5})
    assert judged.verify("forever", "").status == "timeout" and judged.max_failure_share == 0.5
    judged.workers.close()
    with pytest.raises(ValueError, match=r"`max_failure_share` must be in \[0, 1\], got 3"):
        load_verifier("exact", {"max_failure_share": 3})
    with pytest.raises(ValueError, match="takes no settings, got `max_failure_share`"):
        load_verifier("judges.classic", {"max_failure_share": 0.5})


def test_by_import_path():
    folded = load_verifier("judges.plain", {"folded": True})
    assert isinstance(folded, Verifier) and folded.verify("RIGHT", "right").correct
    assert not load_verifier("judges.plain").verify("RIGHT", "right").correct
    assert load_verifier("judges.classic") is judges.classic


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("maths", {}, "Did you mean 'math'"),
        ("judges.missing", {}, "cannot be imported"),
        ("numeric", {"tolrance": 1}, r"does not take the settings .*tolrance.*it has tolerance, relative"),
        ("numeric", {"tolerance": 3}, "must be in \\[0, 1\\), got 3"),
        ("judges.plain", {"fold": True}, r"has no settings \['fold'\]"),
        ("judges.classic", {"folded": True}, "takes no settings"),
        ("judges.os.sep", {}, "cannot be imported|must be callable"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load_verifier(name, settings)


needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
UNIT_TESTS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
SUM = "```python\nprint(sum(map(int, input().split())))\n```"


@needs_bubblewrap
def test_code_by_name():
    """Several programs at a time; the golds are unit tests, which are no completions."""
    verifier = load_verifier("code", {"cpu_seconds": 2, "wall_seconds": 4, "threads": 3})
    programs = [SUM, SUM.replace("sum", "max"), "no program", SUM, "```python\nwhile True: pass\n```"]
    verdicts = verifier.verify_all(programs, [json.dumps(UNIT_TESTS)] * 5)
    assert [verdict.status for verdict in verdicts] == ["correct", "wrong", "no_answer", "correct", "wrong"]
    assert not verifier.golds_are_answers
    assert verifier.gold_problem(json.dumps(UNIT_TESTS)) is None and verifier.gold_problem("39")
    assert "box_answer" in verifier.gold_problem("\\boxed{" + json.dumps(UNIT_TESTS) + "}")
    assert verifier.verify(SUM, "39").status == "error"
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.verify(SUM, json.dumps(UNIT_TESTS)).correct and copy.gold_problem("39")
    assert verifier.identity() != load_verifier("code", {"tolerance": 1e-3}).identity()
    with pytest.raises(ValueError, match="does not take the settings|cpu_secnds"):
        load_verifier("code", {"cpu_secnds": 2})

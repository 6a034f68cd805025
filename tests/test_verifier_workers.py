"""Worker processes: hard deadlines, bounded memory, replacement, and nothing left behind."""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import judges
import pytest

from sgopd_trl.verifiers.workers import Workers


TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def workers():
    workers = Workers(2, timeout=1.0, memory=2**30, preload=["judges"])
    yield workers
    workers.close()


def ask(workers, *completions: str):
    return workers.map(judges.obedient, [(completion, "right") for completion in completions])


def pids(workers) -> set[int]:
    return {int(outcome.value.answer) for outcome in ask(workers, *["pid"] * 20)}


def test_calls_come_back_in_order(workers):
    outcomes = ask(workers, "right", "sleep 0.2", "wrong", "right")
    assert [outcome.value.correct for outcome in outcomes] == [True, False, False, True]
    assert ask(workers) == []


@pytest.mark.parametrize(
    ("completion", "kind", "detail"),
    [
        ("sleep 60", "timeout", "no answer in 1 s"),
        ("power", "timeout", "no answer in 1 s"),
        ("forever", "timeout", "no answer in 1 s"),
        ("hog 4", "memory", "more than 1 GiB"),
        ("die", "error", "exit code 3"),
        ("raise x", "error", "KeyError"),
        ("odd", "error", "Odd: one"),
        ("exit", "error", "SystemExit: 3"),
        ("late", "error", "TimeoutError: the judge's own"),
        ("lambda", "error", "pickle"),
    ],
)
def test_a_call_that_goes_wrong_is_an_outcome_and_hurts_no_other(workers, completion, kind, detail):
    start = time.monotonic()
    outcomes = ask(workers, "right", completion, "right", completion, "wrong")
    assert time.monotonic() - start < 3.5  # two deadlines on two workers, and no waiting for the killed
    assert [outcomes[place].kind for place in (0, 2, 4)] == ["done"] * 3
    assert [(outcomes[place].kind, detail in outcomes[place].detail) for place in (1, 3)] == [(kind, True)] * 2


def test_of_many_calls_the_bad_ones_hurt_no_other(workers):
    """They travel together, and are made again one by one."""
    asked = ["right", "wrong"] * 40
    asked[11], asked[40], asked[41], asked[77] = "die", "raise x", "hog 4", "sleep 60"
    outcomes = ask(workers, *asked)
    kinds = {11: "error", 40: "error", 41: "memory", 77: "timeout"}
    assert [outcome.kind for outcome in outcomes] == [kinds.get(place, "done") for place in range(80)]
    assert all(o.value.correct == (word == "right") for o, word in zip(outcomes, asked) if o.kind == "done")


def test_many_slow_calls_do_not_wait_for_each_other(workers):
    """Eight that travelled together would overrun the deadline of one, and be made twice."""
    start = time.monotonic()
    assert {outcome.kind for outcome in ask(workers, *["sleep 0.15"] * 64)} == {"done"}
    assert time.monotonic() - start < 8  # 64 x 0.15 s on two workers are 4.8 s


def test_the_deadline_counts_from_when_a_worker_has_the_call(workers):
    """Calls that waited for their turn longer than the deadline are not late."""
    assert {outcome.kind for outcome in ask(workers, *["sleep 0.6"] * 8)} == {"done"}


def test_a_worker_that_is_killed_while_it_waits_is_replaced(workers):
    before = pids(workers)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    after = pids(workers)
    assert after and not before & after


def test_a_worker_that_has_done_its_share_is_replaced():
    workers = Workers(1, calls_per_worker=8, preload=["judges"])
    assert len(pids(workers)) >= 4  # 20 calls, of which five travel together
    workers.close()


def test_from_threads_and_async_code(workers):
    answers = {}

    def in_thread(name):
        answers[name] = ask(workers, "right", "sleep 60", name)

    threads = [threading.Thread(target=in_thread, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: [o.kind for o in outcomes] for name, outcomes in answers.items()} == {
        str(number): ["done", "timeout", "done"] for number in range(3)
    }

    async def several():
        return await asyncio.gather(*(asyncio.to_thread(ask, workers, "right", "raise x") for _ in range(3)))

    assert [[o.kind for o in outcomes] for outcomes in asyncio.run(several())] == [["done", "error"]] * 3


@pytest.mark.parametrize("length", [1, 3000])
def test_workers_that_cannot_start_are_an_error_and_no_hang(length):
    """Also where more is waiting than the pipe to the workers holds."""
    workers = Workers(2, preload=["no_such_module"])
    outcomes = workers.map(judges.obedient, [("x" * length, "y")] * 100)
    assert {outcome.kind for outcome in outcomes} == {"error"}
    workers.close()


def test_threads_whose_workers_are_killed_meanwhile_lose_nothing():
    """The pool breaks when idle workers die; every thread notices, one of them replaces it."""
    workers = Workers(2, timeout=5.0, preload=["judges"])
    results, stop = [], threading.Event()

    def in_thread():
        for _ in range(15):
            results.append([outcome.kind for outcome in ask(workers, "right", "x" * 3000, "right")])

    def kill():
        while not stop.is_set():
            time.sleep(0.15)
            pool = workers._pool
            for pid in list(pool._pool_manager.worker_manager.workers) if pool else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    threads = [threading.Thread(target=in_thread) for _ in range(4)]
    killer = threading.Thread(target=kill)
    for thread in [*threads, killer]:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    killer.join()
    assert not any(thread.is_alive() for thread in threads)
    assert len(results) == 60 and all(set(kinds) <= {"done", "error"} for kinds in results)
    assert sum(kinds == ["done"] * 3 for kinds in results) > 20
    workers.close()


def test_closing_does_not_leave_other_threads_waiting():
    workers = Workers(1, timeout=5.0, preload=["judges"])
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(ask(workers, *["sleep 0.1"] * 10)))
    thread.start()
    time.sleep(0.3)
    workers.close()
    thread.join(20)
    assert not thread.is_alive() and len(answers) == 10
    workers.close()


def test_other_threads_may_pickle_what_the_script_defines(workers):
    """Workers are replaced at any time; `__main__` must be there for the others."""
    assert pickle.loads(pickle.dumps(workers)).timeout == workers.timeout
    main = sys.modules["__main__"]
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(sys.modules["__main__"])

    thread = threading.Thread(target=watch)
    thread.start()
    short = Workers(1, calls_per_worker=1, preload=["judges"])
    pids(short)
    short.close()
    stop.set()
    thread.join()
    assert seen == {main}


# A script without `if __name__ == "__main__"`, as users write them
SCRIPT = textwrap.dedent("""
    import sys
    sys.path[:0] = [{tests!r}]
    print("script runs", flush=True)
    import judges
    from sgopd_trl.verifiers.workers import Workers
    workers = Workers(2, timeout=30, preload=["judges"])
    print(*(o.value.answer for o in workers.map(judges.obedient, [("pid", "")] * 20)), flush=True)
    {end}
""")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)", "hang"]
)
def test_no_worker_outlives_its_owner_and_the_script_runs_once(tmp_path, end):
    busy = "workers.map(judges.obedient, [('sleep 20', '')] * 2)"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), end=busy if end == "hang" else end))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "script runs\n"
    workers = {int(pid) for pid in process.stdout.readline().split()}
    if end == "hang":
        time.sleep(0.5)
        process.kill()
    assert "script runs" not in process.communicate(timeout=30)[0]
    until = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert workers and not any(map(alive, workers))


@pytest.mark.parametrize("settings", [{"count": -1}, {"timeout": 0}, {"calls_per_worker": 0}])
def test_settings_are_refused_with_their_values(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"`{name}` must be > 0, got {value}"):
        Workers(**settings)

"""The scheduler on real processes that do quick things in the place of training."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path

import pytest

from sgopd_trl.study import processes, scheduler, worker
from sgopd_trl.study.plan import EVALUATION_DIR, LOG, TRAIN_DIR, Task
from sgopd_trl.study.records import FAILED, FINISHED, RUNNING, claim, read_record, write_record
from sgopd_trl.study.scheduler import make_slots, run_tasks


CPU = {"CUDA_VISIBLE_DEVICES": ""}


class Events(list):
    """A watcher that keeps what it is told."""

    def started(self, task):
        self.append(("started", task.label))

    def ended(self, task, seconds, error):
        self.append(("ended", task.label, error))

    def skipped(self, task):
        self.append(("skipped", task.label))

    def tick(self):
        pass

    def of(self, kind):
        return [event[1] for event in self if event[0] == kind]


def quick(task: Task, env) -> None:
    """In the place of `work`: does what the label says, in a process like a task's."""
    os.setsid()
    worker._write_to(task.folder / LOG)
    os.environ.update(env)
    print(f"devices {os.environ['CUDA_VISIBLE_DEVICES']!r}", flush=True)
    times = task.folder / "times"
    times.write_text(times.read_text() + "x" if times.exists() else "x")
    if task.label.startswith("fails"):
        raise RuntimeError("the reason")
    if task.label.startswith("slow"):
        (task.folder / "pids").write_text(f"{os.getpid()} {start_children()}")
        time.sleep(300)
    time.sleep(0.2)


def start_children() -> str:
    """A process of this group, one of a session of its own, as torch's elastic workers are, and that one's child: pids."""
    command = [sys.executable, "-c", "import time; time.sleep(300)"]
    child = subprocess.Popen(command)
    code = f"import subprocess, time; print(subprocess.Popen({command}).pid, flush=True); time.sleep(300)"
    apart = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True)
    return f"{child.pid} {apart.pid} {apart.stdout.readline()}"


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch):
    def start(task, env):
        process = multiprocessing.get_context("fork").Process(target=quick, args=(task, env))
        process.start()
        return process

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(scheduler, "_TICK", 0.05)


def make_tasks(folder: Path, *labels: str) -> list[Task]:
    return [Task(label, 0, folder / label) for label in labels]


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_finished_tasks_are_not_repeated_and_failed_ones_are(tmp_path):
    tasks, first, second = make_tasks(tmp_path, "a", "fails", "b"), Events(), Events()
    assert run_tasks(tasks, [CPU, CPU], first) == [tasks[1]]
    assert sorted(first.of("started")) == ["a", "b", "fails"]
    assert [read_record(task.folder)["state"] for task in tasks] == [FINISHED, FAILED, FINISHED]
    record = read_record(tasks[1].folder)
    assert record["exit_code"] == 1 and record["error"][-1] == "exit code 1"
    assert "RuntimeError: the reason" in record["error"][-2]

    assert run_tasks(tasks, [CPU], second) == [tasks[1]]
    assert second.of("skipped") == ["a", "b"] and second.of("started") == ["fails"]
    assert [(task.folder / "times").read_text() for task in tasks] == ["x", "xx", "x"]


def test_a_task_that_was_cut_off_is_done_again(tmp_path):
    (task,) = make_tasks(tmp_path, "a")
    write_record(task, RUNNING)
    assert run_tasks([task], [CPU], Events()) == []
    assert read_record(task.folder)["state"] == FINISHED


def test_the_seconds_of_a_run_that_goes_on_are_those_of_all_its_starts(tmp_path):
    goes_on, again = Task("a", 0, tmp_path / "a", command=("train",)), Task("b", 0, tmp_path / "b", command=("train",))
    now = time.time()
    for task in (goes_on, again):  # 10 seconds, then a start that was cut off after 60
        write_record(task, RUNNING, seconds=10.0, started=now - 100)
        (task.folder / LOG).touch()
        os.utime(task.folder / LOG, (now - 40, now - 40))
    make_checkpoint(goes_on.folder / TRAIN_DIR, 5)
    assert run_tasks([goes_on, again], [CPU], Events()) == []
    assert 70 < read_record(goes_on.folder)["seconds"] < 90
    assert read_record(again.folder)["seconds"] < 20


def make_checkpoint(train: Path, step: int, whole: bool = True) -> Path:
    folder = train / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / ("trainer_state.json" if whole else "model.safetensors")).touch()
    return folder


def test_a_training_goes_on_from_its_last_whole_checkpoint(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("sgopd_trl.cli.main", lambda argv: given.append(argv) or 0)
    task = Task("a", 0, tmp_path, recipe={}, command=("train",))
    plain = ["train", "--config", str(tmp_path / "recipe.yaml")]
    train = tmp_path / TRAIN_DIR

    make_checkpoint(train, 2, whole=False)  # cut off
    worker._run_command(task)
    assert given.pop() == plain and not train.exists()

    make_checkpoint(train, 8)
    last = make_checkpoint(train, 10)
    make_checkpoint(train, 12, whole=False)
    worker._run_command(task)
    assert given.pop() == [*plain, "--resume_from_checkpoint", str(last)]

    (train / "_stages").mkdir()
    worker._run_command(task)
    assert given.pop() == [*plain, "--resume_from_checkpoint", "true"]


def test_the_trainer_is_gone_when_the_evaluation_begins(tmp_path, monkeypatch):
    class Trainer:
        def __init__(self):
            self.me = self  # a trainer and its callbacks refer to each other: no count of references frees them

    seen, trainers = [], []

    def main(argv):
        seen.append((argv[0], [trainer() is not None for trainer in trainers]))
        trainers.append(weakref.ref(Trainer()))
        return 0

    monkeypatch.setattr("sgopd_trl.cli.main", main)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: seen.append("cache emptied"))
    gc.disable()
    try:
        worker._work(Task("a", 0, tmp_path, recipe={}, command=("train",), model="model", keep_models=True))
    finally:
        gc.enable()
    assert seen == [("train", []), "cache emptied", ("eval", [False])]


def test_as_many_at_once_as_there_are_slots_each_with_its_devices(tmp_path):
    running, most = set(), []

    class Watch(Events):
        def started(self, task):
            running.add(task.label)
            most.append(len(running))

        def ended(self, task, seconds, error):
            running.discard(task.label)

    tasks = make_tasks(tmp_path, *"abcdef")
    slots = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert run_tasks(tasks, slots, Watch()) == []
    assert max(most) == 2
    assert {(task.folder / LOG).read_text() for task in tasks} == {"devices '0'\n", "devices '1'\n"}


def test_an_interrupt_ends_the_tasks_and_what_they_started(tmp_path):
    (task,) = make_tasks(tmp_path, "slow")
    pids = task.folder / "pids"

    class Interrupting(Events):
        def tick(self):
            if pids.exists() and pids.read_text():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([task], [CPU], Interrupting())
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    assert read_record(task.folder)["state"] == RUNNING  # neither finished nor failed
    assert claim(task) is not None  # and the next study may do it


def test_a_task_of_another_study_is_waited_for(tmp_path):
    (task, other) = make_tasks(tmp_path, "a", "b")
    lock = claim(task)

    class Releasing(Events):
        def ended(self, ended, seconds, error):
            super().ended(ended, seconds, error)
            write_record(task, FINISHED, seconds=1.0)
            lock.release()

    events = Releasing()
    assert run_tasks([task, other], [CPU], events) == []
    assert events.of("started") == ["b"] and events.of("skipped") == ["a"]
    assert not (task.folder / "times").exists()


def test_a_task_that_another_study_gave_up_is_done_here(tmp_path):
    (task, other) = make_tasks(tmp_path, "a", "b")
    lock = claim(task)

    class Releasing(Events):
        def ended(self, ended, seconds, error):
            super().ended(ended, seconds, error)
            lock.release()

    assert run_tasks([task, other], [CPU], Releasing()) == []
    assert (task.folder / "times").read_text() == "x"


def test_slots(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert make_slots([], 1, 3) == [CPU | {"OMP_NUM_THREADS": "1"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert make_slots([], 1, 1) == [CPU | {"OMP_NUM_THREADS": "2"}]
    assert len(make_slots([], 1, None)) == len(os.sched_getaffinity(0))
    gpus = ["4", "5", "6", "7", "8"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(gpus, 2, None)] == ["4,5", "6,7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(["0", "1"], 1, 3)] == ["0", "1", "0"]
    with pytest.raises(ValueError, match="`gpus_per_run` is 2, but there are 1 GPUs"):
        make_slots(["0"], 2, None)


def test_models_are_removed_and_metrics_stay(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    train = tmp_path / TRAIN_DIR
    for name in ("metrics.jsonl", "model.safetensors", "checkpoint-1/optimizer.pt", "sft/metrics.jsonl", "sft/x.bin"):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_text("{}\n")
    (train / "linked").symlink_to(outside)
    worker.remove_models(train)
    assert sorted(str(path.relative_to(train)) for path in train.rglob("*")) == [
        "metrics.jsonl",
        "sft",
        "sft/metrics.jsonl",
    ]
    assert (outside / "kept").exists()


def test_processes_import_nothing_heavy_before_their_environment_is_in_place():
    """A cold start unpickles its target, and must read the task's variables before torch does."""
    code = "import sys, sgopd_trl.study.worker, sgopd_trl.study.run; assert not {'torch', 'trl'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("slot", "env", "method"),
    [
        ("", {}, "forkserver"),
        ("", {"OMP_NUM_THREADS": 1, "MY_OWN": 2}, "forkserver"),
        ("", {"HF_HUB_OFFLINE": "another"}, "spawn"),
        ("0", {}, "spawn"),
    ],
)
def test_which_processes_start_warm(slot, env, method, monkeypatch, tmp_path):
    monkeypatch.undo()  # the real `start`
    started = []

    class Context:
        def __init__(self, name):
            self.name = name

        def Process(self, target, args, name):
            started.append((self.name, args[1]))
            return types.SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(multiprocessing, "get_context", Context)
    processes.start(Task("a", 0, tmp_path, recipe={"env": env}), {"CUDA_VISIBLE_DEVICES": slot})
    assert started == [(method, {"CUDA_VISIBLE_DEVICES": slot} | {name: str(value) for name, value in env.items()})]


_STUDY = """
import multiprocessing, sys, time
from pathlib import Path
from sgopd_trl.study.plan import Task
from sgopd_trl.study import worker

def forever(task):
    import os, signal, threading
    from test_study_scheduler import start_children
    os.setsid()
    threading.Thread(target=worker._end_with_study, daemon=True).start()
    (task.folder / "pids").write_text(f"{os.getpid()} {start_children()}")
    time.sleep(300)

if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=forever, args=(Task("a", 0, Path(sys.argv[1])),))
    process.start()
    process.join()
"""


def test_a_task_ends_with_a_study_that_is_killed(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(_STUDY)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    study = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=env)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and pids.read_text())
    study.send_signal(signal.SIGKILL)
    study.wait()
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def leaves_a_thread(task):
    threading.Thread(target=time.sleep, args=(300,)).start()


def fails(task):
    raise RuntimeError("the reason")


def exits(task):
    raise SystemExit(2)


@pytest.mark.parametrize(("does", "code"), [(leaves_a_thread, 0), (fails, 1), (exits, 2)])
def test_a_process_ends_when_its_work_does(does, code, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_work", does)
    process = multiprocessing.get_context("fork").Process(target=worker.work, args=(Task("a", 0, tmp_path), CPU))
    process.start()
    process.join(20)
    assert process.exitcode == code
    log = (tmp_path / LOG).read_text()
    assert log.startswith("--- started ") and log.splitlines()[0].endswith(": a, seed 0")
    assert ("RuntimeError: the reason" in log) == (does is fails)


def test_the_last_lines_are_of_the_last_start(tmp_path):
    (tmp_path / LOG).write_text("--- started 1\nold\n--- started 2\n" + "".join(f"{n}\n" for n in range(20)))
    assert worker.last_lines(tmp_path, 3) == ["17", "18", "19"] and len(worker.last_lines(tmp_path, 99)) == 20
    assert worker.last_lines(tmp_path / "absent") == []


def test_scores_are_the_average_of_the_summary(tmp_path):
    from sgopd_trl.study.records import read_scores

    (tmp_path / EVALUATION_DIR).mkdir()
    summary = {"average": {"avg@8": {"mean": 0.25, "low": 0.2, "high": 0.3}}, "datasets": {}}
    (tmp_path / EVALUATION_DIR / "summary.json").write_text(json.dumps(summary))
    assert read_scores(tmp_path) == {"avg@8": 0.25}

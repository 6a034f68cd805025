"""metrics.jsonl across a run that is killed and resumed."""

import json

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sgopd_trl.metrics_log import MetricsLog, read_metrics


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def run(args, steps, *, resumed_at=0, main=True, value=1.0):
    state, control, log = TrainerState(global_step=resumed_at), TrainerControl(), MetricsLog()
    state.is_world_process_zero = main
    log.on_train_begin(args, state, control)
    for step in steps:
        state.global_step = step
        log.on_log(args, state, control, logs={"loss": value})


def test_a_resumed_run_takes_the_steps_beyond_its_checkpoint_again(args, tmp_path):
    run(args, range(1, 6), value=1.0)
    run(args, range(4, 8), resumed_at=3, value=2.0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(s, 1.0 if s <= 3 else 2.0) for s in range(1, 8)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_file(args, tmp_path):
    run(args, range(0, 6))
    run(args, [1])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_line_cut_by_a_kill_is_dropped(args, tmp_path):
    run(args, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    run(args, [3], resumed_at=2)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_line_that_is_broken_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_other_processes_write_nothing(args, tmp_path):
    run(args, [1], main=False)
    assert not list(tmp_path.iterdir())


def test_lines_are_json(args, tmp_path):
    run(args, [1], value=float("nan"))

    def refuse(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows == [{"step": 1, "loss": None}]

"""Calls of the teacher beside the trainer's own work."""

import threading
import time

import pytest
import tiny
import torch
from accelerate import Accelerator
from plain_teacher import PlainTeacher

from sgopd_trl import SGOPDTrainer
from sgopd_trl.overlap import TeacherCall
from sgopd_trl.teachers import TeacherError


def test_a_call_in_the_background_is_under_way_before_it_is_asked_for():
    started = threading.Event()
    call = TeacherCall(lambda: started.set() or threading.current_thread(), background=True)
    assert started.wait(5)
    assert call.result(Accelerator(cpu=True)) is not threading.current_thread()


def test_a_call_in_the_foreground_waits_until_it_is_asked_for():
    made = []
    call = TeacherCall(lambda: made.append(1) or threading.current_thread(), background=False)
    time.sleep(0.05)
    assert made == []
    assert call.result(Accelerator(cpu=True)) is threading.current_thread() and made == [1]


@pytest.mark.parametrize("background", [True, False])
def test_errors_come_out_as_they_are(background):
    def fail():
        raise TeacherError("gone")

    with pytest.raises(TeacherError, match="^gone$"):
        TeacherCall(fail, background).result(Accelerator(cpu=True))


def make_trainer(folders, tmp_path, teacher, eval_dataset=None, **overrides) -> SGOPDTrainer:
    settings = dict(teacher_temperature=0.0, max_steps=3) | overrides
    return SGOPDTrainer(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(tmp_path / "run", **settings),
        train_dataset=tiny.dataset(),
        eval_dataset=eval_dataset,
        teacher_model=teacher,
    )


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


def test_a_teacher_elsewhere_trains_the_same_student(folders, tmp_path):
    """With reference, verified rollouts of the teacher, and rows that are not scored because they are truncated."""
    weights, losses = [], []
    for name, teacher in (("in", str(folders / "teacher")), ("out", PlainTeacher(folders / "teacher"))):
        trainer = make_trainer(folders, tmp_path / name, teacher, mask_truncated_completions=True)
        trainer.train()
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
        losses.append([logged(trainer, key) for key in ("loss", "teacher_sampling/loss", "reverse_kl")])
    assert any(losses[0][1])
    for ours, theirs in zip(*losses, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-4, rtol=1e-4)


def test_the_teachers_time_is_hidden_behind_the_trainers(folders, tmp_path, monkeypatch):
    """Its rollouts are under way while the student generates, its scoring while the student and reference are scored."""
    delay = 0.4
    seen = {}
    for name, kept in (("overlapped", True), ("in turn", False)):
        teacher = PlainTeacher(folders / "teacher", delay=delay)
        trainer = make_trainer(folders, tmp_path / name, teacher, max_steps=2, reuse_sampling_logps=False)
        generate, student = trainer._generate_single_turn, trainer.scorer._student_logps

        def slow_generate(*args, trainer=trainer, generate=generate, **kwargs):
            if trainer.judged_rollouts is None:
                time.sleep(delay)
            return generate(*args, **kwargs)

        monkeypatch.setattr(trainer, "_generate_single_turn", slow_generate)
        monkeypatch.setattr(trainer.scorer, "_student_logps", lambda *a, f=student: time.sleep(delay) or f(*a))
        teacher.runs_elsewhere = kept
        trainer.train()
        seen[name] = logged(trainer, "teacher/hidden_share")
        assert min(logged(trainer, "seconds/teacher_worked")) > 2 * delay
    assert min(seen["overlapped"]) > 0.8 and seen["in turn"] == [0, 0]


def test_a_step_without_the_teacher_says_nothing_of_what_is_hidden(folders, tmp_path):
    """Every other step takes the rollouts of the step before: as a zero it would count in a mean."""
    teacher = PlainTeacher(folders / "teacher", delay=0.1)
    trainer = make_trainer(folders, tmp_path, teacher, max_steps=4, num_iterations=2)
    trainer.train()
    worked = logged(trainer, "seconds/teacher_worked")
    assert [seconds > 0 for seconds in worked] == [True, False, True, False]
    steps = [line["step"] for line in trainer.state.log_history if "teacher/hidden_share" in line]
    assert steps == [1, 3]

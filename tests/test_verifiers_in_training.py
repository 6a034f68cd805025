"""Verifiers as a trainer's reward functions: what is logged, what stops a run, and what is kept then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import judges
import pytest
import tiny
import torch
from datasets import Dataset
from test_distributed import free_port
from test_verifier_workers import alive
from trl import GRPOConfig, GRPOTrainer

from sgopd_trl import SGOPDTrainer
from sgopd_trl.gold_answers import check_answers
from sgopd_trl.verifiers import Status, Verdict, Verifier, VerifierFailure, load_verifier


ROOT = Path(__file__).resolve().parents[1]


class Failing:
    """A judge that finds completions with an even number of digits right, and fails from a number of calls on."""

    __qualname__ = "Failing"

    def __init__(self, after: int = 10**9):
        self.after, self.calls = after, 0

    def __call__(self, completion: str, gold: str) -> Verdict:
        self.calls += 1
        if self.calls > self.after:
            raise RuntimeError("the judge is gone")
        even = sum(character.isdigit() for character in completion) % 2 == 0
        return Verdict(Status.CORRECT if even else Status.WRONG)


def make_trainer(folders, tmp_path, verifier, **overrides) -> SGOPDTrainer:
    return SGOPDTrainer(
        model=str(folders / "student"),
        reward_funcs=verifier,
        args=tiny.make_args(tmp_path / "run", **overrides),
        train_dataset=tiny.dataset(),
        teacher_model=str(folders / "teacher"),
    )


def test_verdicts_are_logged_every_step_and_the_rewards_are_theirs(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, Verifier(Failing(), name="even"))
    trainer.train()
    steps = [line for line in trainer.state.log_history if "reward" in line]
    assert len(steps) == 2
    for line in steps:
        shares = [line[f"verdicts/even/{status}"] for status in Status]
        assert sum(shares) == pytest.approx(1) and shares[0] == pytest.approx(line["reward"])
        assert line["rewards/even/mean"] == line["reward"]
    weights = []
    for name, reward in (("verifier", Verifier(Failing(), name="even")), ("function", tiny.even_digits_reward)):
        other = make_trainer(folders, tmp_path / name, reward)
        other.train()
        weights.append(other.model.state_dict())
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_a_failing_judge_stops_the_run_with_its_last_step_saved(folders, tmp_path):
    """Not before its share is too large: ten failures of a thousand are allowed."""
    settings = dict(max_steps=6, teacher_sampling_enable=False, temperature=1.0)
    trainer = make_trainer(folders, tmp_path, Verifier(Failing(after=20), name="even"), **settings)
    with pytest.raises(VerifierFailure, match=r"'even' has failed .* on 12 of the last 32") as raised:
        trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert f"Step 3 is saved in {checkpoint}" in raised.value.__notes__[0]
    kept = [json.loads(line) for line in (tmp_path / "run" / "verifier_failures.jsonl").open()]
    assert len(kept) == 12 and {line["detail"] for line in kept} == {"RuntimeError: the judge is gone"}
    assert all(isinstance(line["completion"], str) for line in kept)
    # With the judge mended the run goes on
    again = make_trainer(folders, tmp_path, Verifier(Failing(), name="even"), **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 6


def test_in_trls_own_trainer(folders, tmp_path):
    """As any reward function, stopping at once."""
    verifier = Verifier(
        Failing(after=8), name="even", failures_file=str(tmp_path / "failures.jsonl"), max_failure_share=0
    )
    trainer = GRPOTrainer(
        model=str(folders / "student"),
        reward_funcs=verifier,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=tiny.dataset(16),
    )
    with pytest.raises(VerifierFailure):
        trainer.train()
    assert any("verdicts/even/correct" in line for line in trainer.state.log_history)
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 8


def test_a_bank_knows_its_verifier_and_its_settings(folders, tmp_path):
    bank = {"teacher_bank": str(tmp_path / "bank")}
    make_trainer(folders, tmp_path / "a", load_verifier("numeric", {"tolerance": 0.1}), **bank)
    make_trainer(folders, tmp_path / "b", load_verifier("numeric", {"tolerance": 0.1}), **bank)
    with pytest.raises(ValueError, match="verifier.reward_funcs.*0.1.*0.2"):
        make_trainer(folders, tmp_path / "c", load_verifier("numeric", {"tolerance": 0.2}), **bank)


def test_a_rollout_of_the_teacher_without_a_verdict_is_not_kept_as_wrong(folders, tmp_path):
    """The judge is gone when the teacher's first rollouts come, and back in the next run: it judges what was written."""
    bank = {"teacher_bank": str(tmp_path / "bank"), "teacher_temperature": 0.0, "max_steps": 1}
    first = make_trainer(folders, tmp_path / "a", Verifier(Failing(after=8), name="even", max_failure_share=1), **bank)
    first.train()
    assert len(first.teacher_sampling.rollouts.bank) == 0
    (step,) = (line for line in first.state.log_history if "teacher_sampling/asked" in line)
    assert step["teacher_sampling/asked"] == 2 and step["teacher_sampling/verified"] == 0
    second = make_trainer(folders, tmp_path / "b", Verifier(Failing(), name="even", max_failure_share=1), **bank)
    second.train()
    (step,) = (line for line in second.state.log_history if "teacher_sampling/asked" in line)
    assert step["teacher_sampling/asked"] == 0 and len(second.teacher_sampling.rollouts.bank) == 2


# Gold answers


def data(*golds: str) -> Dataset:
    prompt = [{"role": "user", "content": "?"}]
    return Dataset.from_dict({"prompt": [prompt] * len(golds), "solution": list(golds)})


def test_malformed_golds_are_named_with_their_rows(caplog):
    verifier = load_verifier("math", {"workers": 1})
    check_answers(data("204", "\\boxed{8\\sqrt{10}}"), "solution", [verifier], None, 0.5)
    assert not caplog.records
    check_answers(data("204", "\\frac{sqrt{7} + 1}{2}"), "solution", [verifier], None, 0.5)  # what it means is plain
    assert "1 of 2 answers of column 'solution' are malformed. row 1: '\\\\frac{sqrt{7} + 1}{2}'" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 2 answers .* do not verify against themselves.*row 1"):
        check_answers(data("204", "\\frac{1}{2"), "solution", [verifier], None, 0.5)
    verifier.workers.close()


def test_golds_that_are_no_answers_are_only_looked_at():
    tests = json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]})
    problem = {"gold_problem": lambda gold: None if "inputs" in gold else "it has no tests", "golds_are_answers": False}
    verifier = Verifier(judges.plain, name="tests", **problem)
    check_answers(data(tests), "solution", [verifier], None, 0.5)
    with pytest.raises(ValueError, match=r"1 of 2 answers .* are malformed. row 1: '3' \(it has no tests\)"):
        check_answers(data(tests, "3"), "solution", [verifier], None, 0.5)


# Several processes

RUN = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import json, os, tiny
from accelerate.utils import gather_object
from test_verifiers_in_training import Failing, make_trainer
from sgopd_trl.cli.launch import end_together
from sgopd_trl.verifiers import Verifier, VerifierFailure, load_verifier
from pathlib import Path
rank = int(os.environ["RANK"])
math = load_verifier("math")
assert math.verify("\\\\boxed{{1/2}}", "0.5").correct
workers = list(math.workers._pool._pool_manager.worker_manager.workers)
verifier = Verifier(Failing(after=20 if rank == 1 else 10**9), name="even")
trainer = make_trainer(Path({folders!r}), Path({out!r}), verifier, max_steps=9, per_device_train_batch_size=8)
assert trainer.accelerator.num_processes == 2
try:
    trainer.train()
    said = None
except VerifierFailure as error:
    said = [str(error), error.__notes__[0]]
said, workers = gather_object([said]), gather_object(workers)
if rank == 0:
    print("SAID", json.dumps([*said, workers]))
end_together(trainer.accelerator)
"""


@pytest.mark.distributed
def test_all_processes_stop_where_ones_judge_fails(folders, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RUN.format(tests=str(ROOT / "tests"), root=str(ROOT), folders=str(folders), out=str(tmp_path)))
    config = ROOT / "recipes" / "accelerate_configs" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*command, "--main_process_port", str(free_port()), str(script)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("SAID"))
    first, second, workers = json.loads(line.removeprefix("SAID "))
    assert len(workers) >= 2 and not any(map(alive, workers))
    assert first == second and "'even' has failed" in first[0] and "is saved in" in first[1]

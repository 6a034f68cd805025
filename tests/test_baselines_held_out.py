"""Evaluation of the baselines on held-out problems, and early stopping by it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from baseline_bank import fill
from safetensors.torch import load_file
from test_baselines import build, logged  # noqa: F401  the fixture

from sgopd_trl.baselines import held_out
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.verifiers import VerifierFailure


EVALUATES = {"eval_strategy": "steps", "eval_steps": 1, "dataset_name": "miniature", "per_device_eval_batch_size": 256}
EVALUATES |= {"num_generations_eval": 2, "max_completion_length": 6, "reward_funcs": "exact_answer_reward"}
EVALUATES |= {"zero_truncated_reward": False}  # of what the small student says most is truncated


@pytest.fixture
def trainer(build, tmp_path, folders):  # noqa: F811
    fill(tmp_path / "bank", folders / "teacher")
    return lambda kind, **settings: build(kind, **EVALUATES | settings)


def every_second(found: dict[str, int]):
    """A verifier that finds every second completion correct: each problem's first sample of two."""

    def reward(completions, **columns):
        found["asked"] = found.get("asked", 0) + len(completions)
        return [float(n % 2 == 0) for n in range(len(completions))]

    return reward


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_held_out_metrics_are_the_verifiers(kind, trainer):
    run, found = trainer(kind, max_steps=1), {}
    run.held_out_rewards = [every_second(found)]
    run.train()
    of_training = 4 if kind == "gkd" else 0
    assert found["asked"] == 2 * 256 + of_training
    assert logged(run, "eval_avg@2") == [0.5] and logged(run, "eval_pass@2") == [1.0]
    assert 0 < logged(run, "eval_completions/mean_length")[0] <= 6


def test_several_reward_functions_are_added_up(trainer):
    run = trainer("sft", correct_reward_threshold=1.5)
    run.held_out_rewards = [every_second({}), lambda completions, **columns: [1.0] * len(completions)]
    assert run.evaluate()["eval_avg@2"] == 0.5  # 2 and 1
    run.args.correct_reward_threshold = 0.5
    assert run.evaluate()["eval_avg@2"] == 1.0


class Ended:
    """A verifier that finds everything correct, and counts what the student ended by itself."""

    def __init__(self):
        self.ended: list[bool] = []
        tokenizer = make_tokenizer()
        self.ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def __call__(self, completion_ids, **columns):
        self.ended += [len(ids) < 6 or ids[-1] in self.ends for ids in completion_ids]
        return [1.0] * len(completion_ids)


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_truncated_completions_are_not_correct(kind, trainer):
    for zeroed in (True, False):
        run, reward = trainer(kind, zero_truncated_reward=zeroed), Ended()
        run.held_out_rewards = [reward]
        found = run.evaluate()["eval_avg@2"]
        assert 0 < sum(reward.ended) < len(reward.ended) == 512
        assert found == pytest.approx(sum(reward.ended) / 512 if zeroed else 1.0)


def test_the_reward_that_gkd_logs_is_without_truncated_completions(trainer):
    for zeroed in (True, False):
        run = trainer(
            "gkd", zero_truncated_reward=zeroed, eval_strategy="no", per_device_train_batch_size=16, max_steps=1
        )
        run.held_out_rewards = [reward := Ended()]
        run.train()
        assert 0 < sum(reward.ended) < 16
        assert logged(run, "reward") == [pytest.approx(sum(reward.ended) / 16 if zeroed else 1.0)]


@pytest.mark.parametrize("training", [True, False])
def test_grpo_gives_truncated_completions_nothing(training, trainer):
    for zeroed in (True, False):
        run = trainer("grpo", zero_truncated_reward=zeroed, num_generations_eval=4)
        run.reward_funcs = [lambda completions, **columns: [1.0, -0.5, None, 1.0]]
        run.model.train(training)
        run._held_out = None if training else []
        ids = [[5] * 6] * 3 + [[5] * 5 + [run.processing_class.eos_token_id]]
        rewards = run._calculate_rewards([{"prompt": "1"}] * 4, ["1"] * 4, ["a"] * 4, ids).squeeze(1)
        assert rewards.nan_to_num(9.0).tolist() == [0.0 if zeroed else 1.0, -0.5, 9.0, 1.0]
        assert run._held_out == (None if training else [not zeroed, False, False, True])


ARGS = SimpleNamespace(zero_truncated_reward=True, max_completion_length=4)


def test_rewards_are_zeroed_one_by_one_and_added_up():
    functions = [
        lambda **columns: [1.0, 1.0, None, None, 1],
        lambda **columns: [0.5, -0.5, 0.5, None, float("nan")],
    ]
    ids = [[5, 6, 7, 8]] * 2 + [[5, 6, 0]] * 2 + [[5, 6, 7, 0]]
    totals = held_out.summed_rewards(functions, ARGS, {0}, ids)
    assert totals.tolist() == [0.0, -0.5, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="returned 5 rewards for 4 completions"):
        held_out.summed_rewards(functions, ARGS, {0}, ids[:4])


class Numeric:
    """A verifier that cannot judge every second completion."""

    __name__ = "numeric"

    def __call__(self, completions, **columns):
        return [None if n % 2 else 1.0 for n in range(len(completions))]


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_what_the_verifier_cannot_judge_is_not_correct(kind, trainer):
    run = trainer(kind, per_device_train_batch_size=4, max_steps=1)
    run.held_out_rewards = [Numeric()]
    run.train()
    assert logged(run, "eval_avg@2") == [0.5] and logged(run, "eval_pass@2") == [1.0]
    assert logged(run, "reward") == ([0.5] if kind == "gkd" else [])


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_a_verifier_that_fails_in_evaluation_stops_the_run(kind, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(kind, reward_funcs="baseline_bank.broken")
    with pytest.raises(VerifierFailure, match="has failed"):
        run.evaluate()
    (failures,) = tmp_path.rglob("*failures*.jsonl")
    assert failures.is_relative_to(tmp_path / "out")


def test_length_ends_with_the_end_of_the_sequence():
    rewards = held_out._SummedRewards([lambda completion_ids, **columns: list(map(len, completion_ids))], ARGS)
    rewards.eos_token_ids = {0}
    assert rewards([[5, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]], prompts=[""] * 3) == [2.0, 0.0, 1.0]
    assert (rewards.totals, rewards.lengths) == ([2.0, 0.0, 1.0], [2, 4, 1])


@pytest.mark.parametrize("kind", ["sft", "gkd", "grpo"])
def test_training_does_not_notice_an_evaluation(kind, trainer):
    more = {"num_generations_eval": 4} if kind == "grpo" else {}
    with_it = trainer(kind, **more)
    with_it.train()
    without = trainer(kind, eval_strategy="no")  # building it seeds
    without.train()
    assert len(logged(with_it, f"eval_avg@{4 if more else 2}")) == 2 and not logged(without, "eval_avg@2")
    for ours, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_verifiers_random_numbers_are_not_the_trainings(trainer):
    run = trainer("sft")
    draws = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(1).item()}
    run.held_out_rewards = [
        lambda completions, **columns: [sum(draw() for draw in draws.values()) for _ in completions]
    ]
    expected = []
    for _ in range(2):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if expected:
            run.evaluate()
        expected.append([draw() for draw in draws.values()])
    assert expected[0] == expected[1]


def test_the_chat_template_gets_its_arguments(trainer):
    run = trainer("sft", chat_template_kwargs={"add_generation_prompt": False})
    with pytest.raises(TypeError, match="add_generation_prompt"):  # evaluation's own: it arrives
        run.evaluate()


STOPS = {"early_stopping_patience": 2, "metric_for_best_model": "avg@2", "load_best_model_at_end": True}
STOPS |= {"save_strategy": "steps", "save_steps": 1}


def rigged(*shares: float):
    """A verifier that finds this share correct in each evaluation of 256 problems, 128 at a time."""
    remaining = iter([share for share in shares for _ in range(2)])

    def reward(completions, **columns):
        if len(completions) < 256:  # of the training
            return [0.0] * len(completions)
        share = next(remaining)
        return [float(n < share * len(completions)) for n in range(len(completions))]

    return [reward]


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_early_stopping_stops_and_the_best_model_is_loaded(kind, trainer, tmp_path):
    run = trainer(kind, max_steps=20, **STOPS)
    run.held_out_rewards = rigged(0.25, 0.5, 0.25, 0.0, 1.0)
    run.train()
    assert logged(run, "eval_avg@2") == [0.25, 0.5, 0.25, 0.0]  # 20 steps would have had 20
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    weights = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in run.model.state_dict().items())


def test_a_resumed_run_goes_on_counting(trainer, tmp_path):
    first = trainer("sft", max_steps=3, **STOPS)
    first.held_out_rewards = rigged(0.25, 0.5, 0.25)
    first.train()
    run = trainer("sft", max_steps=20, **STOPS)
    run.held_out_rewards = rigged(0.0, 1.0)
    run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert run.state.global_step == 4 and logged(run, "eval_avg@2") == [0.25, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("kind", ["sft", "gkd"])
@pytest.mark.parametrize("settings", [{}, {"metric_for_best_model": "eval_loss"}])
def test_the_best_model_by_a_loss_is_refused(kind, settings, trainer):
    """There is none: without this the first evaluation would end the run."""
    complete = {name: value for name, value in STOPS.items() if not name.startswith(("early", "metric"))}
    with pytest.raises(ValueError, match="no loss: .* got '(eval_)?loss', to avg@2 or pass@2"):
        trainer(kind, **complete | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "no"}, "= 2 needs `eval_strategy`"),
        ({"load_best_model_at_end": False}, "needs `load_best_model_at_end`, got False"),
        ({"metric_for_best_model": "loss"}, "needs `metric_for_best_model`, got 'loss': set for example avg@8"),
        ({"metric_for_best_model": "avg@8"}, "avg@8, but with 2 samples a problem .* avg@2 and pass@2"),
        ({"early_stopping_patience": 0}, "must be >= 1, got 0"),
        ({"reward_funcs": None}, "solves held-out problems: set `reward_funcs` too"),
        ({"dataset_name": None}, "solves held-out problems: set `dataset_name` too"),
    ],
)
def test_what_is_missing_for_it_is_said_early(settings, message, trainer):
    complete = {"early_stopping_patience": 2} if settings.get("eval_strategy") == "no" else STOPS
    with pytest.raises(ValueError, match=message):
        trainer("sft", **complete | settings)

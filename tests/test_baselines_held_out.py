"""Evaluation of the baselines on held-out problems, and early stopping by it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from baseline_bank import fill
from safetensors.torch import load_file
from test_baselines import build, logged  # noqa: F401  the fixture

from sgopd_trl.baselines.rewards import SummedRewards
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.rewards import exact_answer_reward
from sgopd_trl.verifiers import Status, VerifierFailure, load_verifier


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


def odd(completion_ids, **columns):
    """A verifier whose word depends on the completion alone."""
    return [float(sum(ids) % 2) for ids in completion_ids]


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


ARGS = SimpleNamespace(zero_truncated_reward=True, max_completion_length=4, reward_weights=None)


def test_rewards_are_zeroed_one_by_one_and_added_up():
    functions = [
        lambda **columns: [1.0, 1.0, None, None, 1],
        lambda **columns: [0.5, -0.5, 0.5, None, float("nan")],
    ]
    ids = [[5, 6, 7, 8]] * 2 + [[5, 6, 0]] * 2 + [[5, 6, 7, 0]]
    rewards = SummedRewards(functions, ARGS, {0}, None)
    assert rewards(ids) == [0.0, -0.5, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="returned 5 rewards for 4 completions"):
        rewards(ids[:4])
    weighted = SummedRewards(functions, SimpleNamespace(**vars(ARGS) | {"reward_weights": [2.0, 4.0]}), {0}, None)
    assert weighted(ids) == [0.0, -2.0, 2.0, 0.0, 2.0]


def test_reward_functions_get_what_trl_gives_them_and_log():
    def logs(completion_ids, trainer_state, log_metric, log_extra, **columns):
        log_extra("texts", ["a"] * len(completion_ids))
        log_metric("share", {3: 0.5, 1: 1.0}[len(completion_ids)] if trainer_state == "state" else 9.0)
        return [0.0] * len(completion_ids)

    rewards = SummedRewards([logs], ARGS, {0}, "state")
    rewards([[5, 0]] * 3)
    rewards([[5, 0]])
    assert rewards.metrics(Accelerator(cpu=True)) == {"share": pytest.approx((3 * 0.5 + 1.0) / 4)}


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_what_the_verifier_logs_is_logged(kind, trainer):
    run = trainer(kind)
    run.watch([load_verifier("exact")])
    metrics = run.evaluate()
    shares = {name: value for name, value in metrics.items() if name.startswith("eval_verdicts/exact/")}
    assert sum(shares.values()) == pytest.approx(1.0) and len(shares) == len(Status)


def test_what_the_verifier_says_of_gkds_rollouts_is_logged(trainer):
    run = trainer("gkd", eval_strategy="no", per_device_train_batch_size=16, max_steps=1)
    run.watch([load_verifier("exact")])
    run.train()
    names = [f"verdicts/exact/{status}" for status in Status]
    assert sum(logged(run, name)[0] for name in names) == pytest.approx(1.0)


async def asynchronous(completions, **columns):
    return [1.0] * len(completions)


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_rewards_that_cannot_be_called_are_refused(kind, trainer):
    run = trainer(kind)
    with pytest.raises(ValueError, match="asynchronous, which `trainer: sft` and `trainer: gkd` cannot call"):
        run.watch([asynchronous])
    run.args.reward_weights = [1.0, 2.0]
    with pytest.raises(ValueError, match=r"`reward_weights` must be 1, one a reward function, got \[1.0, 2.0\]"):
        run.watch([exact_answer_reward])


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_top_k_is_the_evaluations_too(kind, trainer):
    """At top-k 1 all K are the same."""
    run = trainer(kind, top_k=1)
    run.held_out_rewards = [odd]
    metrics = run.evaluate()
    assert 0 < metrics["eval_avg@2"] == metrics["eval_pass@2"] < 1


@pytest.mark.parametrize(
    ("name", "value"), [("min_p", 0.1), ("repetition_penalty", 1.2), ("generation_kwargs", {"seed": 1})]
)
def test_sampling_that_the_evaluation_does_not_have_is_refused(name, value, trainer):
    with pytest.raises(ValueError, match=f"but `{name}` is {value!r}"):
        trainer("gkd", **{name: value})
    trainer("gkd", eval_strategy="no", **{name: value})


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


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_length_ends_with_the_end_of_the_sequence(kind, trainer):
    run, lengths = trainer(kind), []
    end = run.processing_class.eos_token_id

    def reward(completion_ids, **columns):
        assert all(end not in ids[:-1] for ids in completion_ids)
        lengths.extend(map(len, completion_ids))
        return [0.0] * len(completion_ids)

    run.held_out_rewards = [reward]
    assert run.evaluate()["eval_completions/mean_length"] == pytest.approx(sum(lengths) / 512)
    assert min(lengths) < 6 == max(lengths)


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_the_evaluation_does_not_depend_on_its_batches(kind, trainer):
    found = []
    for size in (256, 7):
        run = trainer(kind, per_device_eval_batch_size=size)
        run.held_out_rewards = [odd]
        found.append(run.evaluate())
    assert found[0] == pytest.approx(found[1]) and 0 < found[0]["eval_avg@2"] < 1


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

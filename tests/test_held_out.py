"""avg@k and pass@k of an evaluation during training: which samples count, over how many processes, and what they decide."""

import pytest
import tiny
import torch
from trl import GRPOConfig

from sgopd_trl import SGOPDTrainer
from sgopd_trl.evaluation import avg_at_k, pass_at_k
from sgopd_trl.held_out import HeldOutGRPOTrainer


K = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    tiny.make_model(root / "teacher", seed=1)
    return root


class Judge:
    """`even_digits_reward`, which keeps what it judged of an evaluation: prompts and verdicts in order."""

    __name__ = "judge"

    def __init__(self):
        self.seen: list[tuple[str, bool]] = []

    def __call__(self, prompts, completions, **kwargs):
        rewards = tiny.even_digits_reward(completions)
        self.seen += [(str(prompt), reward > 0.5) for prompt, reward in zip(prompts, rewards, strict=True)]
        return rewards


def make_trainer(folders, tmp_path, judge, plain=False, **overrides):
    args = tiny.make_args(
        tmp_path / "run",
        **(dict(num_generations=K, per_device_eval_batch_size=2 * K, teacher_sampling_enable=False) | overrides),
    )
    shared = dict(
        model=str(folders / "student"),
        reward_funcs=judge,
        train_dataset=tiny.dataset(),
        eval_dataset=tiny.dataset(2),
    )
    if not plain:
        return SGOPDTrainer(args=args, teacher_model=str(folders / "teacher"), **shared)
    names = GRPOConfig.__dataclass_fields__.keys() - {"generation_batch_size", "steps_per_generation"}
    settings = {name: value for name, value in args.to_dict().items() if name in names}
    return HeldOutGRPOTrainer(args=GRPOConfig(**settings), **shared)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("prompts", [4, 5])
def test_every_sample_counts_once(folders, tmp_path, plain, prompts):
    """Also in a last batch that is not full."""
    judge = Judge()
    trainer = make_trainer(folders, tmp_path, judge, plain)
    metrics = trainer.evaluate(tiny.dataset(prompts))
    assert len(judge.seen) == prompts * K
    groups = [judge.seen[first : first + K] for first in range(0, len(judge.seen), K)]
    assert all(len({prompt for prompt, _ in group}) == 1 for group in groups)
    correct = [[verdict for _, verdict in group] for group in groups]
    assert 0 < avg_at_k(correct) < pass_at_k(correct, K)
    assert metrics[f"eval_avg@{K}"] == avg_at_k(correct)
    assert metrics[f"eval_pass@{K}"] == pass_at_k(correct, K)
    assert trainer.state.log_history[-1][f"eval_avg@{K}"] == avg_at_k(correct)
    again = trainer.evaluate(tiny.dataset(prompts))  # nothing is left of the one before
    assert len(judge.seen) == 2 * prompts * K
    assert again[f"eval_avg@{K}"] == avg_at_k([[v for _, v in judge.seen[prompts * K :]]])


def test_a_last_batch_filled_up_with_rows_of_the_first_does_not_count_them_again(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, Judge())

    class Loader:
        dataset = tiny.dataset(3)

        def __iter__(self):  # what the first of two processes is given: 16 rows for 12
            rows = [self.dataset[index] for index in (0, 1, 2, 0) for _ in range(K)]
            return iter([rows[: 2 * K], rows[2 * K :]])

        def __len__(self):
            return 2

    rewards = iter([[1.0, 0, 0, 0] + [0.0] * 4, [0.0] * 4 + [1.0] * 4])
    trainer.reward_funcs = [lambda completions, **kwargs: next(rewards)]
    metrics = trainer.evaluation_loop(Loader(), "Evaluation", prediction_loss_only=True).metrics
    assert metrics[f"eval_avg@{K}"] == 1 / 12
    assert metrics[f"eval_pass@{K}"] == 1 / 3


def test_correct_is_a_weighted_reward_above_the_threshold_once_truncated_ones_are_zeroed(folders, tmp_path):
    trainer = make_trainer(
        folders, tmp_path, Judge(), correct_reward_threshold=0.75, reward_weights=[0.5], zero_truncated_reward=True
    )
    trainer.reward_funcs = [lambda completions, **kwargs: [1.0, 1.5, 1.6, 9.9, float("nan"), None, 2.0, 2.0]]
    trainer.model.eval()
    trainer._held_out = []
    eos = trainer.processing_class.eos_token_id
    ids = [[5, eos]] * 7 + [[5] * trainer.max_completion_length]
    trainer._calculate_rewards([{"prompt": "1"}] * 8, ["1"] * 8, ["a"] * 8, ids)
    assert trainer._held_out == [False, False, True, True, False, False, True, False]


def test_several_datasets_and_another_number_of_samples(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, Judge(), num_generations_eval=2)
    metrics = trainer.evaluate({"easy": tiny.dataset(2), "hard": tiny.dataset(4)})
    assert {"eval_easy_avg@2", "eval_easy_pass@2", "eval_hard_avg@2", "eval_hard_pass@2"} <= metrics.keys()


@pytest.mark.parametrize("plain", [False, True])
def test_the_metric_chooses_the_best_checkpoint_and_stops_early(folders, tmp_path, plain):
    from transformers import EarlyStoppingCallback

    script = iter([0.25, 0.75, 0.5, 0.5, 1.0])  # the held-out accuracies of steps 1, 2, ...
    trainer = make_trainer(
        folders,
        tmp_path,
        tiny.even_digits_reward,
        plain,
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"avg@{K}",
    )
    judge = trainer.reward_funcs[0]

    def scripted(completions, **kwargs):
        if trainer.model.training:
            return judge(completions)
        correct = round(next(script) * len(completions))
        return [1.0] * correct + [0.0] * (len(completions) - correct)

    trainer.reward_funcs = [scripted]
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    weights = []
    evaluate = trainer.evaluate

    def kept(*args, **kwargs):
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return evaluate(*args, **kwargs)

    trainer.evaluate = kept
    trainer.train()
    assert trainer.state.global_step == 4  # 0.75 was not beaten twice
    assert trainer.state.best_metric == 0.75 and trainer.state.best_global_step == 2
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in trainer.model.state_dict().items())

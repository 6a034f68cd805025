from itertools import combinations

import pytest
import torch
from datasets import Dataset

from sgopd_trl.evaluation import avg_at_k, evaluate, pass_at_k
from sgopd_trl.miniature import checkpoint_path, make_dataset, make_tokenizer
from sgopd_trl.miniature.task import SOLUTION_TOKENS
from sgopd_trl.rewards import exact_answer_reward


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint_path("guess"))


def test_avg_at_k() -> None:
    assert avg_at_k([[True, False], [True, True]]) == 0.75
    assert avg_at_k([[0, 0, 0, 1]]) == 0.25


def test_pass_at_k() -> None:
    one_of_four, none_of_four = [False, True, False, False], [False] * 4
    assert pass_at_k([one_of_four], 1) == 0.25
    assert pass_at_k([one_of_four], 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the correct sample
    assert pass_at_k([one_of_four], 4) == 1.0
    assert pass_at_k([one_of_four, none_of_four], 2) == pytest.approx(0.25)


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("num_correct", range(7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(num_correct: int, k: int) -> None:
    row = [True] * num_correct + [False] * (6 - num_correct)
    subsets = list(combinations(row, k))
    assert pass_at_k([row], k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_bad_tables_are_refused() -> None:
    for table in ([], [[]], [[True], [True, False]]):
        with pytest.raises(ValueError, match="same, positive number of samples"):
            avg_at_k(table)
        with pytest.raises(ValueError, match="same, positive number of samples"):
            pass_at_k(table, 1)
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"between 1 and the 2 samples.*got {k}"):
            pass_at_k([[True, False]], k)


def test_evaluate_passes_every_completion_with_its_row(model) -> None:
    """Three prompts of unequal length in batches that cut one's samples: columns and completions stay aligned."""
    tokenizer = make_tokenizer()
    prompts = ["51;+5;-6;+3;-7;-9;+6;-4=", "51;+5=", "00;+1;+1="]
    rows = [{"prompt": [{"role": "user", "content": p}], "solution": str(i)} for i, p in enumerate(prompts)]
    calls, ticks, twos = [], [], iter(range(3))
    model.train()

    def reward(prompts, completions, completion_ids, solution):
        assert not model.training
        assert all(len(c) == 1 and c[0]["role"] == "assistant" for c in completions)
        assert all("<" not in c[0]["content"] for c in completions)
        assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids] == [
            c[0]["content"] for c in completions
        ]
        assert all(model.generation_config.eos_token_id not in ids[:-1] for ids in completion_ids)
        calls.append([(prompt[0]["content"], gold) for prompt, gold in zip(prompts, solution, strict=True)])
        return [1.0 if gold == "0" else 0.5 if gold == "1" else float(next(twos) == 0) for gold in solution]

    result = evaluate(
        model,
        tokenizer,
        Dataset.from_list(rows),
        reward,
        k=3,
        max_new_tokens=2,
        batch_size=4,
        progress=lambda done, total: ticks.append((done, total)),
    )
    pairs = [(prompts[i], str(i)) for i in (0, 2, 1) for _ in range(3)]  # the longest prompt first
    assert calls == [pairs[:4], pairs[4:8], pairs[8:]]
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    # 3 correct of 3; none, since the threshold itself is not above it; 1 of 3
    assert result == {"avg@3": pytest.approx(4 / 9), "pass@3": pytest.approx(2 / 3), "problems": 3}


def test_a_sample_depends_on_seed_prompt_and_number_alone(model) -> None:
    def samples(rows: Dataset, **settings) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}

        def reward(prompts, completions, **kwargs):
            for prompt, completion in zip(prompts, completions, strict=True):
                found.setdefault(prompt[0]["content"], []).append(completion[0]["content"])
            return [0.0] * len(prompts)

        evaluate(model, make_tokenizer(), rows, reward, max_new_tokens=SOLUTION_TOKENS, **{"k": 4} | settings)
        return found

    data = make_dataset("test", 6)
    found = samples(data)
    assert len({text for texts in found.values() for text in texts}) > 12
    assert samples(data, batch_size=5) == found
    last = data.select([5])
    prompt = last[0]["prompt"][0]["content"]
    assert samples(last) == {prompt: found[prompt]}
    assert samples(last, k=2) == {prompt: found[prompt][:2]}
    assert samples(last, seed=1) != {prompt: found[prompt]}


def test_left_padding_does_not_change_what_is_sampled(model) -> None:
    """Nearly greedy: a prompt beside a longer one gets the completion that it gets alone."""
    seen = []

    def reward(completions, **kwargs):
        seen.append(completions)
        return [0.0] * len(completions)

    short, long = "51;+5;-6=", "51;+5;-6;+3;-7;-9;+6;-4="
    for prompts in ([short], [short, long]):
        evaluate(
            model,
            make_tokenizer(),
            Dataset.from_dict({"prompt": prompts}),
            reward,
            k=1,
            temperature=1e-4,
            max_new_tokens=SOLUTION_TOKENS,
        )
    assert isinstance(seen[0][0], str)
    assert seen[0][0] == seen[1][1]  # the longest prompt comes first


def test_evaluate_leaves_no_trace(model) -> None:
    model.train()
    model.model.norm.eval()  # a mixed state must come back as it was
    modes = [module.training for module in model.modules()]
    config, state = model.generation_config.to_dict(), torch.get_rng_state()
    arguments = dict(k=2, max_new_tokens=SOLUTION_TOKENS, seed=3)
    first = evaluate(model, make_tokenizer(), make_dataset("test", 8), exact_answer_reward, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == config
    torch.rand(1)
    assert evaluate(model, make_tokenizer(), make_dataset("test", 8), exact_answer_reward, **arguments) == first

    def broken(**kwargs):
        raise RuntimeError("broken reward")

    with pytest.raises(RuntimeError, match="broken reward"):
        evaluate(model, make_tokenizer(), make_dataset("test", 2), broken, **arguments)
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_the_models_own_sampling_settings_do_not_leak_in(model) -> None:
    """Qwen3 ships top_k=20 and a top_p; with top_k=1 leaking in, all samples of a prompt would be the same."""
    completions = []

    def reward(completions: list, out=completions, **kwargs):
        out += [c[0]["content"] for c in completions]
        return [0.0] * len(completions)

    saved = model.generation_config.top_k
    model.generation_config.top_k = 1
    try:
        evaluate(model, make_tokenizer(), make_dataset("test", 1), reward, k=8, max_new_tokens=SOLUTION_TOKENS)
    finally:
        model.generation_config.top_k = saved
    assert len(set(completions)) > 1


def test_bad_input_is_named(model) -> None:
    tokenizer, data = make_tokenizer(), make_dataset("test", 2)
    with pytest.raises(ValueError, match="column 'prompt'.*question"):
        evaluate(model, tokenizer, Dataset.from_dict({"question": ["a"]}), exact_answer_reward, max_new_tokens=2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        evaluate(model, tokenizer, data, exact_answer_reward, k=0, max_new_tokens=2)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        evaluate(model, tokenizer, data, exact_answer_reward, temperature=0.0, max_new_tokens=2)
    with pytest.raises(ValueError, match="1 rewards for 16"):
        evaluate(model, tokenizer, data, lambda **kwargs: [1.0], max_new_tokens=2)
    with pytest.raises(ValueError, match="returned None for"):
        evaluate(model, tokenizer, data, lambda completions, **kwargs: [None] * len(completions), max_new_tokens=2)

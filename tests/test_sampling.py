"""Log-probabilities kept while sampling, and sampling with a seed a rollout."""

import tiny
import torch
from reference import sequence_logps
from transformers import GenerationConfig, LogitsProcessorList

from sgopd_trl.sampling_logps import SamplingLogps
from sgopd_trl.seeded_sampling import SeededSampler, VocabularyLimit, rollout_seed, sampling_processors
from sgopd_trl.teachers import SamplingSettings


def config(**kwargs) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=8, pad_token_id=0, eos_token_id=1, disable_compile=True, **kwargs)


def test_kept_logps_are_those_of_a_fresh_pass_on_ragged_prompts():
    model = tiny.make_model(None, seed=0)
    torch.manual_seed(3)
    prompts = [[5, 6, 7], [9]]
    input_ids = torch.tensor([[5, 6, 7], [0, 0, 9]])
    with SamplingLogps(model, temperature=0.7) as recorder:
        output = model.generate(
            input_ids=input_ids,
            attention_mask=(input_ids != 0).long(),
            generation_config=config(do_sample=True, temperature=0.7, top_k=3),
        )
    completions = [row[: row.index(1) + 1] if 1 in row else row for row in output[:, 3:].tolist()]
    kept = recorder.logps(completions)
    for prompt, completion, values in zip(prompts, completions, kept, strict=True):
        expected = sequence_logps(model, prompt, completion, temperature=0.7)
        torch.testing.assert_close(torch.tensor(values), expected, atol=1e-5, rtol=1e-5)
    assert not model._forward_hooks  # the hook is gone


def test_nothing_is_kept_of_what_was_not_plain_sampling():
    model = tiny.make_model(None, seed=0)
    with SamplingLogps(model, 1.0) as recorder:
        model(input_ids=torch.tensor([[5, 6]]))
        model(input_ids=torch.tensor([[5, 6, 7]]))  # a whole sequence again: no step of a sampling loop
    assert recorder.logps([[7, 8]]) is None


def test_seeds_differ_and_are_stable():
    assert rollout_seed(0, "teacher", 1, 2) == rollout_seed(0, "teacher", 1, 2)
    assert len({rollout_seed(seed, "teacher", 1, number) for seed in range(3) for number in range(3)}) == 9
    assert rollout_seed(1, 23) != rollout_seed(12, 3)


def test_a_rollout_does_not_depend_on_its_batch():
    model = tiny.make_model(None, seed=0)

    def generate(prompts, seeds):
        return model.generate(
            input_ids=torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), 2, dtype=torch.long),
            generation_config=config(do_sample=False),
            logits_processor=sampling_processors(seeds, SamplingSettings(0.9, 0.95, 10, 8), tiny.VOCABULARY),
        )[:, 2:].tolist()

    together = generate([[5, 6], [7, 8], [9, 9]], [11, 12, 13])
    assert generate([[7, 8]], [12]) == [together[1]]
    assert generate([[9, 9], [5, 6]], [13, 11]) == [together[2], together[0]]
    assert generate([[7, 8]], [99]) != [together[1]]


def test_seeded_sampling_follows_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    count = 4000
    sampler = SeededSampler([rollout_seed(0, number) for number in range(count)], 1)
    drawn = sampler(torch.zeros(count, 3, dtype=torch.long), probabilities.log().expand(count, -1)).argmax(-1)
    frequencies = torch.bincount(drawn, minlength=4) / count
    assert frequencies[1] == 0
    torch.testing.assert_close(frequencies, probabilities, atol=0.03, rtol=0)  # about 4 standard errors


def test_padded_vocabulary_is_never_sampled_and_temperature_zero_is_greedy():
    scores = torch.tensor([[0.0, 1.0, 9.0]])
    ids = torch.zeros(1, 1, dtype=torch.long)
    assert VocabularyLimit(2)(ids, scores).argmax().item() == 1
    greedy = sampling_processors([0], SamplingSettings(temperature=0, max_new_tokens=4), 2)
    assert isinstance(greedy, LogitsProcessorList) and greedy(ids, scores).argmax().item() == 1

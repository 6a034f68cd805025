"""Step-level certificates: from characters to tokens, and the miniature's line by line."""

import random

import pytest
import tiny
import torch
from reference import StepRecorder, relative_error, sequence_logps, sg_opd_loss, unpad
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sgopd_trl import SGOPDTrainer
from sgopd_trl.certificates import Step, gate_advantages, token_offsets, token_values
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.miniature.lines import LineVerifier, line_certificate
from sgopd_trl.miniature.task import FLAWS, Flaws, sample_prompt, worked_solution


TOKENIZER = make_tokenizer()
PROMPT, SOLUTION = "51;+5;-6;+3;-7;-9;+6;-4=", "1_56_50_53_56^47^33^49^3\\boxed{39}"


def ids(text: str, end: bool = True) -> list[int]:
    return TOKENIZER(text)["input_ids"] + [TOKENIZER.eos_token_id] * end


def signs(prompt: str, completion: str) -> list[int]:
    return [int(step.value) for step in line_certificate(prompt, completion)]


# From characters to tokens


def test_offsets_are_of_the_decoded_text():
    assert token_offsets(TOKENIZER, ids("1_5\\boxed{39}")) == [
        *((0, 1), (1, 2), (2, 3), (3, 10), (10, 11), (11, 12), (12, 13)),
        (13, 13),  # the end of the sequence has no character
    ]


@pytest.mark.parametrize("fast", [True, False])
def test_offsets_of_characters_that_are_several_tokens(fast, monkeypatch):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["so x = 3, and so on"] * 10, vocab_size=280, min_frequency=2)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    if not fast:
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
    text = "so \u221a2 \u2264 \U0001d465 and so"
    token_ids = tokenizer(text)["input_ids"]
    offsets = token_offsets(tokenizer, token_ids)
    assert len(token_ids) > len(text) - 4 and offsets[0][0] == 0 and offsets[-1][1] == len(text)
    assert [text[start:end] for start, end in offsets if end > start] and "".join(
        text[start:end] for start, end in offsets
    ) == tokenizer.decode(token_ids)
    assert all(before[1] == after[0] for before, after in zip(offsets, offsets[1:]))


def test_a_token_that_begins_a_character_belongs_to_it():
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["x=2"], vocab_size=256)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    token_ids = tokenizer("x=\u221a2")["input_ids"]
    assert len(token_ids) == 6  # the root is three
    assert token_values([Step(0, 2, 1.0), Step(2, 3, -1.0)], token_ids, tokenizer, 0.5) == [1, 1, -1, -1, -1, 0.5]


def test_bytes_that_are_no_character():
    """A tokenizer with byte fallback, as Llama's, and whatever a student samples."""
    model = BPE(
        {"<unk>": 0, "\u2581and": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}, [], byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    rng = random.Random(0)
    for _ in range(300):
        token_ids = [rng.choice([1, 2 + rng.randrange(256), 2 + 0x65]) for _ in range(8)]
        offsets = token_offsets(tokenizer, token_ids)
        text = tokenizer.decode(token_ids)
        assert len(offsets) == 8 and offsets[-1][1] <= len(text)
        assert all(before[1] == after[0] <= after[1] for before, after in zip(offsets, offsets[1:]))
        token_values([Step(0, 3, 1.0)], token_ids, tokenizer, 0.0)


def test_a_token_has_its_steps_value_and_elsewhere_the_outcomes():
    certificate = [Step(0, 3, 2.0), Step(6, 9, -1.0)]
    values = token_values(certificate, ids("1_56_50_5"), TOKENIZER, 0.5)
    assert values == [2.0] * 3 + [0.5] * 3 + [-1.0] * 3 + [0.5]
    # A token that is longer than its step has the value of where it begins
    assert token_values([Step(4, 9, 1.0)], ids("\\boxed{39"), TOKENIZER, 0.0) == [0.0, 1.0, 1.0, 0.0]
    assert token_values(None, ids("1_5"), TOKENIZER, 0.5) == [0.5] * 4
    assert token_values([], ids("1_5"), TOKENIZER, 0.5) == [0.5] * 4
    assert token_values([1, -1, 0, 1], ids("1_5"), TOKENIZER, 0.5) == [1.0, -1.0, 0.0, 1.0]


def test_advantages_of_a_batch():
    a1 = torch.tensor([0.5, -0.5])
    advantages = gate_advantages([[Step(0, 1, 1.0)], None], [ids("12"), ids("1", end=False)], TOKENIZER, a1, 4)
    assert advantages.tolist() == [[1.0, 0.5, 0.5, 0.0], [-0.5, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ([1.0, 2.0], "a value for each of 3 tokens, got 2"),
        ([float("nan")] * 3, "must be finite"),
        ([Step(0, 1, float("inf"))], "must be finite"),
        ([Step(1, 1, 1.0)], "0 <= start < end"),
        ([Step(0, 1, 1.0), 1.0, 1.0], "steps or numbers, not both"),
        ([Step(-1, 1, 1.0)], "0 <= start < end"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused_with_its_row(certificate, message):
    with pytest.raises(ValueError, match=f"certificate of completion 1 of this batch.*{message}"):
        gate_advantages([None, certificate], [ids("12"), ids("12")], TOKENIZER, torch.zeros(2), 3)


# Line by line


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (SOLUTION, [1] * 9),
        (SOLUTION.replace("^", "~"), [1] * 9),  # hidden flags
        (SOLUTION.replace("0_5", "1_5"), [1, 1, -1, -1, 1, 1, 1, 1, 1]),  # what follows no longer fits it
        ("1_56_51_54_57^48^34^40_4\\boxed{40}", [1, 1, -1, 1, 1, 1, 1, 1, 1]),  # ... unless it does
        (SOLUTION.replace("{39}", "{93}"), [1] * 8 + [-1]),
        (SOLUTION.replace("6^4", "6_4"), [1, 1, 1, 1, -1, 1, 1, 1, 1]),  # a wrong flag
        ("1_56_5?\\boxed{39}", [1, 1, -1]),  # a guess
        ("1_56_50_5", [1, 1, 1]),
        (SOLUTION + "11", [1] * 9 + [-1]),
        ("", []),
    ],
)
def test_lines(completion, expected):
    assert signs(PROMPT, completion) == expected


def test_every_clean_solution_is_right_and_flaws_are_found():
    rng = random.Random(0)
    for _ in range(200):
        prompt = sample_prompt(rng, "train")
        assert signs(prompt, worked_solution(prompt)) == [1] * 9
        assert -1 in signs(prompt, worked_solution(prompt, Flaws(noise=1.0), rng))
        for name in FLAWS:
            solution = worked_solution(prompt, FLAWS[name], rng)
            steps = line_certificate(prompt, solution)
            assert "".join(solution[s.start : s.end] for s in steps) == solution
            if all(s.value > 0 for s in steps):
                assert solution.endswith(worked_solution(prompt)[-4:])


def test_as_a_reward_function_with_certificates():
    verifier = LineVerifier()
    messages = [[{"role": "assistant", "content": SOLUTION}], [{"role": "assistant", "content": "1_5"}]]
    prompts = [[{"role": "user", "content": PROMPT}]] * 2
    assert verifier(completions=messages, solution=["39", "39"], prompts=prompts) == [1.0, 0.0]
    steps = verifier.certify(prompts=prompts, completions=messages, completion_ids=[[], []], solution=["39"] * 2)
    assert [len(certificate) for certificate in steps] == [9, 1]


# In a trainer


class Digits:
    """Right where the number of digits is even; certifies each digit: even ones are right, odd ones wrong."""

    __name__ = "digits"

    def __init__(self, certified=lambda row: True):
        self.certified = certified

    def __call__(self, completions, **kwargs):
        return tiny.even_digits_reward(completions)

    def certify(self, prompts, completions, completion_ids, **columns):
        texts = [completion[0]["content"] for completion in completions]
        assert len(prompts) == len(texts) == len(completion_ids) == len(columns["solution"])
        return [
            [Step(at, at + 1, 1 - 2 * (int(c) % 2)) for at, c in enumerate(text) if c.isdigit()]
            if self.certified(row)
            else None
            for row, text in enumerate(texts)
        ]


def make_trainer(folders, tmp_path, reward, **overrides) -> SGOPDTrainer:
    return SGOPDTrainer(
        model=str(folders / "student"),
        reward_funcs=reward,
        args=tiny.make_args(tmp_path, **overrides),
        train_dataset=tiny.dataset(),
        teacher_model=str(folders / "teacher"),
    )


def by_hand(rollout) -> list[float]:
    tokens = [TOKENIZER.decode([token], skip_special_tokens=True) for token in rollout["completion"]]
    return [1.0 - 2 * (int(text) % 2) if text.isdigit() else rollout["a1"] for text in tokens]


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_of_steps_whose_gate_reads_certificates(folders, tmp_path, order):
    trainer = make_trainer(
        folders,
        tmp_path,
        Digits(),
        per_device_train_batch_size=8 // order,
        gradient_accumulation_steps=order,
        max_steps=2,
        max_grad_norm=1e9,
        teacher_sampling_enable=False,
    )
    recorder = StepRecorder().watch(trainer)
    trainer.train()
    initial, teacher = (AutoModelForCausalLM.from_pretrained(folders / name) for name in ("student", "teacher"))
    differ = 0
    for step in recorder.steps:
        student = AutoModelForCausalLM.from_pretrained(folders / "student")
        student.load_state_dict(step["weights"])
        rollouts = unpad(step["batches"])
        with torch.no_grad():
            for rollout in rollouts:
                for name, model in (("old", student), ("teacher", teacher), ("reference", initial)):
                    rollout[name] = sequence_logps(model, rollout["prompt"], rollout["completion"])
                rollout["certificates"] = by_hand(rollout)
                differ += sum(c * rollout["a1"] < 0 for c in rollout["certificates"])
        loss = sg_opd_loss(student, rollouts)
        loss.backward()
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        assert relative_error(step["gradients"], gradients) < 1e-5
    assert differ > 5  # certificates say otherwise than the outcome


def test_without_a_certificate_it_is_the_outcomes_gate(folders, tmp_path):
    weights = []
    for name, reward in (("outcome", tiny.even_digits_reward), ("none", Digits(lambda row: False))):
        trainer = make_trainer(folders, tmp_path / name, reward, disagree_mode="grpo")
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_text_that_is_not_the_tokens_is_refused(folders, tmp_path):
    """As where TRL parses a response."""
    trainer = make_trainer(folders, tmp_path, Digits(), max_steps=1)
    calculate = trainer._calculate_rewards

    def parsed(inputs, prompts, completions, ids):
        return calculate(inputs, prompts, [[{"role": "assistant", "content": "1 and 2"}] for _ in completions], ids)

    trainer._calculate_rewards = parsed
    with pytest.raises(ValueError, match="the text the verifier saw is another: '1 and 2'"):
        trainer.train()


def test_one_reward_function_certifies(folders, tmp_path):
    with pytest.raises(ValueError, match="from one reward function, but digits, line_verifier have them"):
        make_trainer(folders, tmp_path, [Digits(), LineVerifier()])

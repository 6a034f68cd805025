"""The notebook's view of a rollout: a2 and class of each token by hand, and HTML that is safe."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import make_model
from torch import nn

from sgopd_trl.miniature import make_dataset, make_tokenizer
from sgopd_trl.token_view import TokenRecord, score_tokens, to_html, token_logps


class Unigram(nn.Module):
    """A language model with the same distribution over the miniature's 24 tokens at every position."""

    def __init__(self, probabilities: dict[int, float]):
        super().__init__()
        rest = (1 - sum(probabilities.values())) / (24 - len(probabilities))
        table = torch.full((24,), rest)
        for token, probability in probabilities.items():
            table[token] = probability
        self.logits = nn.Parameter(table.log())
        self.device = torch.device("cpu")

    def forward(self, input_ids, logits_to_keep):
        return SimpleNamespace(logits=self.logits.expand(*input_ids[:, -logits_to_keep:].shape, -1))


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize(
    ("a1", "classes"),
    [
        (1.5, ["agree", "disagree"]),
        (-0.5, ["disagree", "agree"]),
        (0.0, ["neutral", "neutral"]),
    ],
)
def test_a2_and_class_by_hand(tokenizer, a1, classes):
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])
    student, teacher = Unigram({one: 0.2, two: 0.4}), Unigram({one: 0.4, two: 0.1})

    records = score_tokens(student, teacher, tokenizer, "5+5=", [one, two], a1)

    assert [record.text for record in records] == ["1", "2"]
    # T - S: the teacher likes "1" twice as much, "2" a quarter as much
    assert [record.a2 for record in records] == pytest.approx([math.log(2), -math.log(4)], abs=1e-6)
    assert [record.class_name for record in records] == classes


def test_tokens_of_equal_log_probability_are_neutral(tokenizer):
    model = Unigram({5: 0.3})
    assert [record.class_name for record in score_tokens(model, model, tokenizer, "5=", [5, 6], 1.0)] == ["neutral"] * 2


def test_temperature_divides_both_models_logits(tokenizer):
    one = tokenizer.convert_tokens_to_ids("1")
    student, teacher = Unigram({one: 0.2}), Unigram({one: 0.4})

    (record,) = score_tokens(student, teacher, tokenizer, "5=", [one], 1.0, temperature=2.0)

    def logp(probability: float) -> float:  # p^(1/2), renormalised over 24 tokens
        return math.log(probability**0.5 / (probability**0.5 + 23 * ((1 - probability) / 23) ** 0.5))

    assert record.a2 == pytest.approx(logp(0.4) - logp(0.2), abs=1e-6)


def test_scores_agree_with_a_full_forward_pass(tokenizer):
    student, teacher = make_model(None, seed=1), make_model(None, seed=2)
    student.train()
    prompt = make_dataset("train", 1)[0]["prompt"]
    completion = tokenizer("1_56_5")["input_ids"]
    ids = torch.tensor([tokenizer(prompt[0]["content"])["input_ids"] + completion])

    records = score_tokens(student, teacher, tokenizer, prompt, completion, 1.0)

    expected = 0
    for model, sign in ((teacher, 1), (student, -1)):
        logps = model.eval()(input_ids=ids).logits[0].log_softmax(-1)  # the row before a token predicts it
        expected = expected + sign * torch.stack([logps[i - 1, ids[0, i]] for i in range(24, ids.size(1))])
    assert [record.a2 for record in records] == pytest.approx(expected.tolist(), abs=1e-5)


def test_scoring_leaves_the_training_mode_as_it_was(tokenizer):
    model = make_model(None, seed=1).train()
    token_logps(model, [2, 3, 4], 2)
    assert model.training


def test_an_empty_completion_is_refused(tokenizer):
    model = make_model(None, seed=1)
    with pytest.raises(ValueError, match="completion is empty"):
        score_tokens(model, model, tokenizer, "5=", [], 1.0)


def test_html_shows_each_token_in_the_colour_of_its_class_with_a2():
    records = [TokenRecord("7", 0.25, "agree"), TokenRecord("^", -1.5, "disagree"), TokenRecord("x", 0.0, "neutral")]
    page = to_html(records)

    assert 'background:#0072B2;text-decoration:underline" title="a2 = +0.250 nats, agree">7</span>' in page
    assert 'background:#E69F00" title="a2 = -1.500 nats, disagree">^</span>' in page
    assert 'background:#C7C7C7" title="a2 = +0.000 nats, neutral">x</span>' in page
    for name in ("agree", "disagree", "neutral"):
        assert page.count(f">{name}</span>") == 1, "the legend explains each class once"


def test_html_is_escaped():
    page = to_html([TokenRecord('<script>"&', 0.0, "neutral")])
    assert "<script>" not in page
    assert "&lt;script&gt;&quot;&amp;" in page


def test_html_makes_white_space_visible():
    assert ">␣a⏎</span>" in to_html([TokenRecord(" a\n", 0.0, "neutral")])

"""The formulas over the vocabulary: computed by hand, as expectations of the sampled token's gradient, and in their limits."""

import math
from dataclasses import replace

import pytest
import torch

from sgopd_trl.lm_head import LmHead, logit_scale, weighted_token_loss
from sgopd_trl.vocabulary_loss import forward_kl_loss, reverse_kl_loss


STUDENT, TEACHER, REFERENCE = (torch.tensor([p]).log() for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.4, 0.1]))


def random_logits(count=7, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: 2 * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw().requires_grad_(), draw(), draw()


def test_reverse_kl_by_hand():
    # 1/2 ln 2 - 1/4 ln 2
    assert reverse_kl_loss(STUDENT, TEACHER).item() == pytest.approx(0.25 * math.log(2))


def test_extrapolated_reverse_kl_by_hand():
    # T - R: ln(1/2), ln(5/4), ln(5/2); expectation under the student
    expectation = 0.5 * math.log(0.5) + 0.25 * math.log(1.25) + 0.25 * math.log(2.5)
    expected = 0.25 * math.log(2) - 0.8 * expectation
    assert reverse_kl_loss(STUDENT, TEACHER, REFERENCE, torch.tensor([1.8])).item() == pytest.approx(expected, rel=1e-5)


def test_forward_kl_by_hand():
    # 1/4 ln(1/2) + 1/2 ln 2; on the teacher's first token alone it is the cross-entropy -ln 1/4
    assert forward_kl_loss(STUDENT, TEACHER, 3).item() == pytest.approx(0.25 * math.log(2))
    assert forward_kl_loss(STUDENT, TEACHER, 1).item() == pytest.approx(math.log(4))
    # The two likeliest, {0: 1/3, 1: 2/3} of the teacher, against the student's 1/2 and 1/4 as they are
    teacher = torch.tensor([[0.3, 0.6, 0.1]]).log()
    expected = math.log(2 / 3) / 3 + 2 / 3 * math.log(8 / 3)
    assert forward_kl_loss(STUDENT, teacher, 2).item() == pytest.approx(expected, rel=1e-5)


def test_strength_one_is_the_kl_divergence_and_does_not_read_the_reference():
    student, teacher, reference = random_logits()
    expected = torch.nn.functional.kl_div(
        teacher.log_softmax(-1), student.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    ones = torch.ones(len(student), dtype=torch.float64)
    torch.testing.assert_close(reverse_kl_loss(student, teacher), expected)
    torch.testing.assert_close(reverse_kl_loss(student, teacher, reference, ones), expected)


@pytest.mark.parametrize("lam", [1.0, 1.8])
def test_the_gradient_is_the_expected_policy_gradient_by_enumeration(lam):
    """E_v[A(v) grad log pi(v)] over every token v, with A detached as PPO has it."""
    student, teacher, reference = random_logits()
    (got,) = torch.autograd.grad(
        reverse_kl_loss(student, teacher, reference, torch.full((7,), lam, dtype=torch.float64)).sum(), student
    )
    s, t, r = (logits.log_softmax(-1) for logits in (student, teacher, reference))
    advantage = (t - s + (lam - 1) * (t - r)).detach()
    (policy_gradient,) = torch.autograd.grad(-(s.exp().detach() * advantage * s).sum(), student)
    torch.testing.assert_close(got, policy_gradient)
    assert got.abs().max() > 0.1


def test_forward_kl_on_the_whole_vocabulary_is_exact():
    student, teacher, _ = random_logits()
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(forward_kl_loss(student, teacher, 11), expected)
    torch.testing.assert_close(forward_kl_loss(student, teacher, 500), expected)
    (gradient,) = torch.autograd.grad(forward_kl_loss(student, teacher, 11).sum(), student)
    torch.testing.assert_close(gradient, (student.softmax(-1) - teacher.softmax(-1)).detach())


def test_truncated_forward_kl_raises_the_teachers_tokens_and_lowers_every_other():
    student, teacher, _ = random_logits()
    losses = forward_kl_loss(student, teacher, 3)
    assert (losses >= 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    chosen = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, teacher.topk(3).indices, True)
    assert (gradient[~chosen] > 0).all()
    q = teacher.masked_fill(~chosen, -math.inf).softmax(-1)
    torch.testing.assert_close(gradient, student.softmax(-1).detach() - q)


@pytest.mark.parametrize("with_reference", [False, True])
def test_top_k_comes_closer_with_k_and_ends_at_the_exact_loss(with_reference):
    student, teacher, reference = random_logits(count=200, vocabulary=64)
    # A model's distribution is peaked, and teacher and student are related
    student, teacher = (3 * student).detach().requires_grad_(), 3 * student.detach() + teacher
    extra = (3 * student.detach() + reference, torch.full((200,), 1.8, dtype=torch.float64)) if with_reference else ()

    def loss_and_gradient(k):
        losses = reverse_kl_loss(student, teacher, *(extra or (None, None)), k)
        return losses.detach(), torch.autograd.grad(losses.sum(), student)[0]

    exact = loss_and_gradient(None)
    errors = [
        [(a - b).abs().mean().item() for a, b in zip(loss_and_gradient(k), exact, strict=True)] for k in (2, 8, 32)
    ]
    for few, more in zip(errors, errors[1:], strict=False):
        assert more[0] < few[0] / 2 and more[1] < few[1] / 2
    for k in (64, 100):
        assert all(torch.equal(a, b) for a, b in zip(loss_and_gradient(k), exact, strict=True))


def test_top_k_is_the_loss_of_the_distributions_renormalised_on_the_students_tokens():
    student, teacher, _ = random_logits()
    chosen = student.topk(4).indices
    expected = reverse_kl_loss(student.gather(-1, chosen), teacher.gather(-1, chosen))
    torch.testing.assert_close(reverse_kl_loss(student, teacher, top_k=4), expected)
    (gradient,) = torch.autograd.grad(reverse_kl_loss(student, teacher, top_k=4).sum(), student)
    assert ((gradient != 0).sum(-1) == 4).all()


class Heads:
    """Hidden states and heads of three models with heads of different size, and the loss computed all at once."""

    def __init__(self, count=23, vocabulary=16, bias=True, softcap=None, scale=1.0):
        generator = torch.Generator().manual_seed(1)
        self.states, self.heads = [], []
        for width, rows in ((8, 16), (12, 20), (6, 17)):
            states, weight = (torch.randn(*shape, generator=generator) for shape in ((count, width), (rows, width)))
            b = torch.randn(rows, generator=generator).requires_grad_() if bias else None
            self.states.append(states.requires_grad_())
            self.heads.append(LmHead(weight.requires_grad_(), b, vocabulary, 0.7, scale, softcap))
        self.weights = torch.rand(count, generator=generator)
        self.lam = torch.full((count,), 1.5)

    @property
    def leaves(self):
        return [leaf for leaf in (self.states[0], self.heads[0].weight, self.heads[0].bias) if leaf is not None]

    def at_once(self):
        logits = []
        for states, head in zip(self.states, self.heads, strict=True):
            z = states @ head.weight[:16].t() + (0 if head.bias is None else head.bias[:16])
            z = z * head.scale
            z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
            logits.append(z / 0.7)
        return (reverse_kl_loss(logits[0], logits[1].detach(), logits[2].detach(), self.lam) * self.weights).sum()

    def chunked(self, chunk):
        return weighted_token_loss(
            lambda s, t, r, rows: reverse_kl_loss(s, t, r, self.lam[rows]),
            self.states[0],
            self.heads[0],
            list(zip(self.states[1:], self.heads[1:], strict=True)),
            self.weights,
            chunk,
        )


@pytest.mark.parametrize("settings", [{}, dict(bias=False), dict(softcap=2.0, scale=0.5)])
@pytest.mark.parametrize("chunk", [1, 5, 23, 100, None])
def test_a_chunk_at_a_time_is_all_at_once(settings, chunk):
    """Loss and gradients to hidden states, weight and bias; heads of different size; padding rows get none."""
    heads = Heads(**settings)
    expected = heads.at_once()
    gradients = torch.autograd.grad(3 * expected, heads.leaves)
    got = heads.chunked(chunk)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(3 * got, heads.leaves), gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_nothing_is_kept_or_differentiated_without_gradients(monkeypatch):
    heads = Heads()
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        torch.testing.assert_close(heads.chunked(5), heads.at_once().detach())


def test_a_frozen_head_and_no_tokens():
    heads = Heads()
    heads.heads[0].weight.requires_grad_(False)
    heads.heads[0].bias.requires_grad_(False)
    (expected,) = torch.autograd.grad(heads.at_once(), heads.states[0])
    (got,) = torch.autograd.grad(heads.chunked(5), heads.states[0])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    empty = Heads(count=0)
    loss = empty.chunked(5)
    loss.backward()
    assert loss == 0 and empty.states[0].grad.shape == (0, 8)


def test_no_tensor_of_all_tokens_logits_is_made():
    """Counted in the largest tensor that any operation makes, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, tuple | list) else (output,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return output

    tokens, vocabulary, width, chunk = 512, 1000, 4, 8
    student, teacher = (torch.randn(tokens, width, requires_grad=True) for _ in range(2))
    heads = [LmHead(torch.randn(vocabulary, width, requires_grad=True), None, vocabulary) for _ in range(2)]
    with Largest() as largest:
        weighted_token_loss(
            lambda s, t, rows: reverse_kl_loss(s, t),
            student,
            heads[0],
            [(teacher, heads[1])],
            torch.ones(tokens),
            chunk,
        ).backward()
    assert largest.numel <= chunk * vocabulary


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_under_autocast_each_head_is_cast_once_and_not_for_every_chunk(chunk):
    """Counted in the copies of a head's size: rounded once a head, and on a processor widened once again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens, vocabulary, width, casts = 64, 50, 96, []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default and output.numel() == vocabulary * width:
                casts.append(output.dtype)
            return output

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
    states = [draw(tokens, width) for _ in range(3)]
    heads = [LmHead(draw(vocabulary + padding, width), None, vocabulary, temperature=10.0) for padding in (0, 3, 7)]
    lam = torch.full((tokens,), 1.5)

    def loss(states, heads):
        return weighted_token_loss(
            lambda s, t, r, rows: reverse_kl_loss(s, t, r, lam[rows]),
            states[0],
            heads[0],
            list(zip(states[1:], heads[1:], strict=True)),
            torch.ones(tokens),
            chunk,
        )

    with torch.autocast("cpu", torch.bfloat16), Casts():
        got = loss(states, heads)
    assert casts.count(torch.bfloat16) == 3 and casts.count(torch.float32) == 3 and len(casts) == 6
    gradients = torch.autograd.grad(got, [states[0], heads[0].weight])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2

    # The same as with states and heads that were rounded before
    rounded = [replace(head, weight=head.weight.detach().bfloat16().float().requires_grad_()) for head in heads]
    rounded_states = [s.detach().bfloat16().float().requires_grad_() for s in states]
    expected = loss(rounded_states, rounded)
    torch.testing.assert_close(got, expected)
    exact = torch.autograd.grad(expected, [rounded_states[0], rounded[0].weight])
    for gradient, other in zip(gradients, exact, strict=True):
        assert (gradient - other).norm() / other.norm() < 0.005  # the gradient to the logits is rounded, too


def test_bfloat16_keeps_the_divergence_in_float32():
    heads = Heads(count=200, bias=False)
    low = Heads(count=200, bias=False)
    low.states = [s.detach().bfloat16().requires_grad_() for s in low.states]
    low.heads = [LmHead(h.weight.detach().bfloat16().requires_grad_(), None, 16, 0.7) for h in low.heads]
    heads.states = [s.detach().float().requires_grad_() for s in low.states]
    heads.heads = [LmHead(h.weight.detach().float().requires_grad_(), None, 16, 0.7) for h in low.heads]
    assert low.chunked(9).dtype == torch.float32
    torch.testing.assert_close(low.chunked(9), heads.at_once(), atol=1e-4, rtol=1e-5)
    gradients = torch.autograd.grad(low.chunked(9), low.leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    for got, expected in zip(gradients, torch.autograd.grad(heads.at_once(), heads.leaves), strict=True):
        assert (got - expected).norm() / expected.norm() < 0.01


def test_logit_scales_are_read_as_trl_reads_them():
    from types import SimpleNamespace

    assert logit_scale(SimpleNamespace(model_type="qwen3")) == 1.0
    assert logit_scale(SimpleNamespace(model_type="cohere", logit_scale=0.5)) == 0.5
    assert logit_scale(SimpleNamespace(model_type="mpt", logit_scale=None)) == 1.0
    assert logit_scale(SimpleNamespace(model_type="falcon_h1", lm_head_multiplier=0.2)) == 0.2
    assert logit_scale(SimpleNamespace(model_type="granite", logits_scaling=8.0)) == 1 / 8
    assert logit_scale(SimpleNamespace(model_type="hyperclovax", logits_scaling=8.0)) == 8.0

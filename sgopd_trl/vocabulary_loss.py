"""Losses of a token over the vocabulary."""

REVERSE_KLS: tuple[str, ...] = ("sampled_token", "full_vocabulary")
NEGATIVE_ADVANTAGE_MODES: tuple[str, ...] = ("policy_gradient", "forward_kl")

"""Verifiers: what decides whether a completion is right, as TRL reward functions and as plain functions."""

from .answers import as_completion, verify_choice, verify_exact, verify_numeric
from .registry import REWARD_FUNCTIONS, VERIFIERS, load_verifier
from .reward import Verifier, VerifierFailure
from .verdict import Status, Verdict
from .workers import Workers

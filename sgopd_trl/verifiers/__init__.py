"""Verifiers: what decides whether a completion is right, as TRL reward functions and as plain functions."""

from .verdict import Status, Verdict

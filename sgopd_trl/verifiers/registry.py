"""The verifiers by name, and those of the user's by import path."""

import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .answers import verify_choice, verify_exact, verify_numeric
from .reward import Verifier
from .workers import Workers, share_of_cores


if TYPE_CHECKING:
    from .code import CodeVerifier


def exact() -> Verifier:
    """The boxed answer is the gold, as a string."""
    return Verifier(verify_exact, name="exact")


def numeric(tolerance: float = 1e-6, relative: bool = True) -> Verifier:
    """The boxed answer is a number within a tolerance of the gold."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"`tolerance` must be in [0, 1), got {tolerance!r}.")
    return Verifier(verify_numeric, name="numeric", settings={"tolerance": tolerance, "relative": relative})


def choice() -> Verifier:
    """The boxed answer names the gold's letter."""
    return Verifier(verify_choice, name="choice")


def math(timeout: float = 5.0, memory_gib: float = 2.0, workers: int | None = None) -> Verifier:
    """The boxed answer is mathematically the gold: math-verify, hardened, in worker processes.

    Args:
        timeout: seconds a verdict may take. memory_gib: GiB a worker may have. workers: processes; default: this
            process's share of the cores.
    """
    from .maths import check_gold, verify_maths  # sympy takes a second to import

    pool = Workers(workers, timeout=timeout, memory=int(memory_gib * 2**30), preload=["sgopd_trl.verifiers.maths"])
    return Verifier(verify_maths, name="math", gold_problem=check_gold, workers=pool)


def code(
    allow_unsandboxed: bool = False,
    tolerance: float = 1e-9,
    wrapped_outputs: bool = False,
    python: str | None = None,
    packages: Sequence[str] = (),
    threads: int | None = None,
    **limits: float,
) -> Verifier:
    """The program in the completion passes the gold's unit tests, under bubblewrap.

    Args:
        allow_unsandboxed: run programs without bubblewrap where it is missing. tolerance, wrapped_outputs, python, packages:
            of `CodeVerifier`. threads: programs at a time; default: this process's share of the cores. limits: of `Limits`.
    """
    from .code import CodeVerifier, Limits

    known = Limits.__dataclass_fields__
    if unknown := sorted(limits.keys() - known):
        raise ValueError(
            f"The verifier 'code' does not take the settings {unknown}; its limits are {', '.join(known)}."
        )
    settings = {
        "tolerance": tolerance,
        "wrapped_outputs": wrapped_outputs,
        "python": python,
        "packages": tuple(packages),
    }
    judge = CodeVerifier(Limits(**limits), allow_unsandboxed=allow_unsandboxed, **settings)

    return Verifier(
        judge,
        name="code",
        about=settings | limits,
        gold_problem=functools.partial(_problem_of_tests, judge),
        golds_are_answers=False,
        threads=threads or share_of_cores(),
    )


def _problem_of_tests(judge: "CodeVerifier", gold: Any) -> str | None:
    if "\\boxed" in str(gold)[:10]:
        return "it is boxed: set `box_answer: false`, for unit tests are no answer"
    return judge.check_gold(gold)


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "math": math,
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "code": code,
}
REWARD_FUNCTIONS = {  # by import path: TRL's take a second to import
    "exact_answer_reward": "sgopd_trl.rewards.exact_answer_reward",
    "line_verifier": "sgopd_trl.miniature.lines.LineVerifier",
    "accuracy_reward": "trl.rewards.accuracy_reward",
    "think_format_reward": "trl.rewards.think_format_reward",
    "reasoning_accuracy_reward": "trl.rewards.reasoning_accuracy_reward",
}


def load_verifier(name: str, settings: dict[str, Any] | None = None) -> Callable:
    """The verifier of a name or of an import path, which is looked for in the working directory too.

    Args:
        name: in `VERIFIERS` or `REWARD_FUNCTIONS`; or module.function of a TRL reward function, or of a judge `(completion, gold)`, which is
            made a `Verifier`. settings: keyword arguments for a named verifier, or for a judge; `max_failure_share` for
            either; and for a judge `timeout` (seconds) and `workers`, either of which has it run in worker processes.

    Raises:
        ValueError: with the names there are, with what is wrong with the import path, or for unknown settings.
    """
    settings = dict(settings or {})
    share = settings.pop("max_failure_share", None)
    verifier = _load(name, settings)
    if share is not None:
        if not isinstance(verifier, Verifier):
            raise ValueError(f"The reward function {name!r} takes no settings, got `max_failure_share` = {share!r}.")
        verifier.allow_failures(share)
    return verifier


def _load(name: str, settings: dict[str, Any]) -> Callable:
    if name in VERIFIERS:
        return _called(VERIFIERS[name], name, settings)
    function = _imported(name)
    if _is_judge(function):
        limits = {key: settings.pop(key) for key in ("workers", "timeout") if key in settings}
        unknown = settings.keys() - inspect.signature(function).parameters.keys()
        if unknown:
            raise ValueError(f"The verifier {name!r} has no settings {sorted(unknown)}.")
        # Without a limit on memory: what a user's module imports is not known
        pool = Workers(limits.get("workers"), timeout=limits.get("timeout", 30.0), memory=None) if limits else None
        return Verifier(function, name=function.__name__, settings=settings, workers=pool)
    if inspect.isclass(function):
        return _called(function, name, settings)
    if settings:
        raise ValueError(f"The reward function {name!r} takes no settings, got {settings!r}.")
    return function


def _called(factory: Callable, name: str, settings: dict[str, Any]) -> Callable:
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as error:
        known = ", ".join(inspect.signature(factory).parameters) or "none"
        raise ValueError(
            f"The verifier {name!r} does not take the settings {settings!r} ({error}); it has {known}."
        ) from error
    return factory(**settings)


def _is_judge(function: Callable) -> bool:
    if not inspect.isfunction(function):
        return False
    return list(inspect.signature(function).parameters)[:2] == ["completion", "gold"]


def _imported(name: str) -> Callable:
    path = REWARD_FUNCTIONS.get(name, name)
    names = [*VERIFIERS, *REWARD_FUNCTIONS]
    module_name, _, function_name = path.rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown reward function {name!r}.{hint} Use one of {', '.join(names)}, or an import path such as "
            "my_lib.rewards.my_reward."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The reward function {name!r} cannot be imported: {error}. Names without a module are {', '.join(names)}."
        ) from error
    if not callable(function):
        raise ValueError(f"The reward function {name!r} must be callable, but it is {function!r}.")
    return function

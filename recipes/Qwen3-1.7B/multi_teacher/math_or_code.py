"""The verifier of config_math_code.yaml: a gold that is a JSON object of unit tests is code's, any other is maths'."""

import functools

from sgopd_trl.verifiers import Verdict, load_verifier


_of_kind = functools.cache(load_verifier)  # made when first needed: `code` asks for bubblewrap


def judge(completion: str, gold: str) -> Verdict:
    return _of_kind("code" if gold.lstrip().startswith("{") else "math").verify(completion, gold)

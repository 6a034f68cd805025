"""Whether a completion's answer is the gold answer of a maths problem."""

from .gold import check_gold
from .verify import verify_maths

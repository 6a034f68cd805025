"""The verifier of code: programs run against unit tests, in a sandbox."""

from .gold import check_gold
from .limits import Limits
from .sandbox import SandboxUnavailable
from .verifier import CodeVerifier, verify_code

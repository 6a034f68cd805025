"""What the processes of a study are forked with, so that a run starts in a fraction of a second and not in ten.

Imported by the server that forks them, which runs nothing else. Threads would not survive a fork: OpenMP has started none,
because `OMP_NUM_THREADS` is set by then, and no GPU is touched.
"""

import transformers.models.auto.modeling_auto  # noqa: F401
import trl  # noqa: F401

from .. import figures, trainer  # noqa: F401
from ..cli import teacher_rollouts, train  # noqa: F401
from ..evaluation import judge, runner, summary  # noqa: F401
from ..evaluation.engines import in_process  # noqa: F401

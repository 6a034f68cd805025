import os


os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and data for tests are made locally

import pytest
import torch


# Models this small run faster on one thread, and the processes a test starts do not fight over the cores.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of two tiny random models of one family, `student` and `teacher`."""
    import tiny

    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    tiny.make_model(root / "teacher", seed=1)
    return root

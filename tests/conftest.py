import shutil
import signal

import pytest
import torch
from cuda_sources import build_shim

from robust_lr.evaluation import session


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny networks are fastest on one thread, and other work may run beside the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def unprobed():
    """Evaluations are not probed unless a test asks for it: most of them look at something else."""
    session.DEFAULT_CHECK = "off"
    yield
    session.DEFAULT_CHECK = "default"


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A background job of a shell starts with SIGINT ignored, and passes that on: tests send it in earnest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shim(pytestconfig):
    """The CUDA operators for CPU tensors."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the CUDA shim with")
    torch.ops.load_library(str(build_shim(compiler, pytestconfig.cache.mkdir("cuda_shim"))))
    return torch.ops.robust_lr_shim


@pytest.fixture
def seeded():
    """Layers and images are drawn the same in every test; of some starts, a tiny network is dead."""
    torch.manual_seed(0)

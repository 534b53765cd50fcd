import subprocess
import sys

import pytest

PROGRAM = """
import resource
from pathlib import Path
from robust_lr.utils.heap import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

blocks = [b"x" * (64 << 10) for _ in range(2000)]
full = resident()
blocks = blocks[::200]  # what is kept lies between what is freed
return_freed_memory()
print(full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is the C library's of Linux")
def test_freed_memory_is_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 << 20

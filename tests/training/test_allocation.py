"""Pages of freed tensors stay with the process while it trains."""

import subprocess
import sys

import pytest

# pages made anew while tensors of 8 MB come and go, a few at a time: 2048 pages each
COUNT = """
import resource, torch
from sslzoo_training.allocation import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [torch.ones(2**21) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

with freed_memory_kept():
    faults()
    print(faults())
    within = resident()
print(within - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are left alone")
def test_pages_are_kept_within_and_given_back_after() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    assert faults < 2048
    assert given_back > 2048

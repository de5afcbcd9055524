"""Freed memory stays with the process while it trains on a CPU.

Tensors of a step are as large as those of the step before. By default glibc gives such blocks back to the system at
once, and every page of the next one has to be made anew: that was half of the cost of random views, and a tenth of
the whole step of a thin ResNet-18 at 64 px.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST = 32 * 2**20  # bytes of a block that is kept: as far as glibc's own rule goes


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within: blocks of up to 32 MB are kept for the next ones, larger ones are not. After: all is given back.

    Does nothing where the C library is not glibc, or has another allocator in its place.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)  # glibc's rule: twice the other threshold
        libc.malloc_trim(0)

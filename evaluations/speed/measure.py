"""What the benchmarks share: a child process's CPU and wall time, and the spread of repeated figures."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self


class ChildError(RuntimeError):
    """A measured process failed; the message has its command and the end of what it said."""


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        cpu: Seconds of CPU time, user and system, of all threads and of all processes it started and waited for.
        wall: Seconds on the clock.
    """

    cpu: float
    wall: float

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.cpu - other.cpu, self.wall - other.wall)


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Self:
        """The spread of at least one figure."""
        return cls(median(figures), min(figures), max(figures))

    def show(self, digits: int) -> str:
        """As in "12.10 (11.90–12.31)"."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[Cost, str]:
    """Run a command to its end, alone: no other child of this process may end meanwhile.

    Args:
        command: Program and arguments.
        environment: Variables to add to this process's own.

    Returns:
        Its cost, and what it wrote to stdout.

    Raises:
        ChildError: It failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ChildError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall), done.stdout


def thread_limits(threads: int) -> dict[str, str]:
    """Environment of a child that computes with so many threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@contextmanager
def confined(cpus: int) -> Iterator[None]:
    """Keep this process, and the children it starts, to some of its CPUs; does nothing where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cpus])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def machine() -> str:
    """A line on the machine, and on how busy others keep it: wall time means little on a busy one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    return f"{name}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} before the start"

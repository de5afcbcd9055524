"""How long a user waits for the package to start, and whether torch was loaded for nothing.

    python -m sslzoo_evaluations speed startup      # goals: import under 0.2 s, --help under 0.5 s, both without torch

Each line is a fresh Python process, its own start included, with compiled bytecode at hand (one run goes before).
"""

import argparse
import sys

from .measure import Cost, Spread, machine, run_child

# what the `sslzoo` script does with --help, so that its modules can be seen at the end
HELP = """
import sys
sys.argv = ["sslzoo", "--help"]
from sslzoo.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
"""

SNIPPETS: dict[str, tuple[str, float | None]] = {  # what: (code, most seconds)
    "python": ("", None),
    "import sslzoo": ("import sslzoo", 0.2),
    "sslzoo.list_models()": ("import sslzoo; str(sslzoo.list_models())", None),
    "sslzoo --help": (HELP, 0.5),
}
TAIL = "\nimport sys; print('\\nTORCH' if 'torch' in sys.modules else '\\nNO TORCH')"


def start(code: str) -> tuple[Cost, bool]:
    """Run code in a new Python. Returns its cost, and whether torch was loaded at its end."""
    cost, output = run_child([sys.executable, "-c", code + TAIL])
    return cost, output.splitlines()[-1] == "TORCH"


def row(name: str, costs: list[Cost], torch: bool, most: float | None) -> str:
    """A line of the table; `most`: the goal for the median wall time, seconds."""
    wall = Spread.of([cost.wall for cost in costs])
    goal = (
        ""
        if most is None
        else f"goal {most} s without torch: {'met' if wall.median < most and not torch else 'MISSED'}"
    )
    cpu = Spread.of([cost.cpu for cost in costs])
    return f"{name:22}{cpu.show(3):24}{wall.show(3):24}{'yes' if torch else 'no':7}{goal}".rstrip()


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args(argv).repeats
    print(machine())
    print(f"{f'median of {repeats}':22}{'CPU seconds':24}{'wall seconds':24}{'torch':7}")
    for name, (code, most) in SNIPPETS.items():
        start(code)
        costs, torch = zip(*(start(code) for _ in range(repeats)), strict=True)
        print(row(name, list(costs), any(torch), most))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

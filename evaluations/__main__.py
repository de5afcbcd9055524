"""`python -m sslzoo_evaluations NAME …`: runs `main` of the file NAME.py of this folder; without NAME lists them."""

import ast
import sys
from importlib import import_module
from pathlib import Path

from sslzoo.console import is_users, message

HERE = Path(__file__).parent


def evaluations(folder: Path) -> dict[str, str]:
    """Name -> first line of the docstring, of the files of a folder that have a function `main(argv)`."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if has_main and path.stem != "__main__":
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(argv: list[str]) -> int:
    """Run one evaluation, or list them."""
    folder, package = HERE, __package__
    if argv[:1] == ["speed"]:
        folder, package, argv = HERE / "speed", f"{package}.speed", argv[1:]
    found = evaluations(folder)
    if argv and argv[0] in found:
        try:
            return int(import_module(f"{package}.{argv[0]}").main(argv[1:]))
        except Exception as error:
            if not is_users(error):
                raise
            print(f"error: {message(error)}", file=sys.stderr)
            return 1
    if argv and argv[0] not in ("-h", "--help"):
        print(f"error: no evaluation {argv[0]!r}. There are: {', '.join(found) or 'none'}.", file=sys.stderr)
        return 2
    print(_listing(folder, found))
    return 0


def _listing(folder: Path, found: dict[str, str]) -> str:
    lines = [f"{name:<10}  {line}" for name, line in found.items()]
    if folder == HERE:
        lines.append(f"{'speed':<10}  Benchmarks: python -m sslzoo_evaluations speed")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

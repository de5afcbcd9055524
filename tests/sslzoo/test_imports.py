"""Public names, and the rule that imports go down (DESIGN.md, "The house"), read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslzoo

ROOT = Path(__file__).parents[2]
PACKAGES = {"sslzoo": ROOT / "sslzoo", "sslzoo_training": ROOT / "training", "sslzoo_evaluations": ROOT / "evaluations"}
# From the bottom up: a module may import those of its own line and of the lines above it in this list.
ORDER = (
    {"console", "provenance", "zoo", "hub", "weights", "images", "data", "splits", "lab", "transforms", "upstream"}
    | {
        "modes",
        "measured",
        "names",
        "folding",
        "knn",
        "snippets",
        "mnist_networks",
        "resnets",
        "pickles",
        "torch_files",
        "downloads",
    }
    | {"class_table", "coco", "joint", "masks", "boxes", "box_files"},
    {"encoder"},
    {"encoding", "feature_files", "features", "heads", "card", "model_card", "plots", "export"},
    {"probes", "trainer", "finetuning", "publish", "conversion"},
    {"originals"},
    {"cli", "demo", "__main__", "__init__"},
)
# What may reach up, inside a function: a method that delegates, as Encoder.embed does.
REACHES_UP = {("encoder", "features"), ("encoder", "publish"), ("heads", "publish"), ("weights", "originals")}
# The only module of sslzoo that knows the other two packages, inside its functions.
COMMAND_LINE = {"cli", "__main__"}

SOURCES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def imports(package: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether at its top level. Those for type checkers only do not count."""
    module = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]

    def walk(nodes: list[ast.stmt] | list[ast.AST], top: bool) -> Iterator[tuple[str, bool]]:
        for node in nodes:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                yield from walk(node.orelse, top)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, top) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = [*module[: -node.level], node.module] if node.level else [node.module]
                prefix = ".".join(part for part in base if part)
                # `from package import name`: name may be a module, so it counts with its package
                yield from ((f"{prefix}.{alias.name}", top) for alias in node.names)
            else:
                inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(list(ast.iter_child_nodes(node)), top and not inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")).body, True)


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "sslzoo", tmp_path)
    (tmp_path / "heads").mkdir()
    path = tmp_path / "heads" / "fcn.py"
    path.write_text(
        "import a.b\n"
        "from ..zoo import info\n"
        "from . import segmenter\n"
        "if TYPE_CHECKING:\n    from hidden import x\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "class C:\n    def f(self):\n        from sslzoo.cli import main\n"
    )
    assert list(imports("sslzoo", path)) == [
        ("a.b", True),
        ("sslzoo.zoo.info", True),
        ("sslzoo.heads.segmenter", True),
        ("tried", True),
        ("sslzoo.cli.main", False),
    ]


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=[f"{p}/{f.stem}" for p, f in SOURCES])
def test_packages_do_not_know_each_other(package: str, path: Path) -> None:
    for name, top in imports(package, path):
        target = name.split(".")[0]
        if target not in PACKAGES or target in {package, "sslzoo"}:
            continue
        lazily_from_cli = package == "sslzoo" and path.stem in COMMAND_LINE and not top
        assert lazily_from_cli, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", [f for p, f in SOURCES if p == "sslzoo"], ids=lambda path: path.stem)
def test_inside_sslzoo_imports_go_down(path: Path) -> None:
    level = {module: n for n, modules in enumerate(ORDER) for module in modules}
    own = path.relative_to(PACKAGES["sslzoo"]).with_suffix("").parts[0]
    assert own in level, f"{own} is not in ORDER: say where it stands"
    for name, top in imports("sslzoo", path):
        parts = name.split(".")
        if parts[0] != "sslzoo" or len(parts) == 1:
            continue
        # `from sslzoo import load` goes through the public names, to the module that has it
        target = sslzoo._MODULES.get(parts[1], parts[1])
        if not top and (own, target) in REACHES_UP:
            continue
        assert level.get(target, 99) <= level[own], f"{path.relative_to(ROOT)} imports {name}, which stands above it"


def test_public_names_resolve_and_type_checkers_see_the_same() -> None:
    for name, module in sslzoo._MODULES.items():
        assert getattr(sslzoo, name).__module__ == f"sslzoo.{module}"
    shown = set()
    for node in ast.walk(ast.parse((PACKAGES["sslzoo"] / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sslzoo."):
            shown |= {(alias.asname, node.module.removeprefix("sslzoo.")) for alias in node.names}
    assert shown == set(sslzoo._MODULES.items())
    assert dir(sslzoo) == sorted(sslzoo.__all__)
    assert sslzoo.__version__[0].isdigit()
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; it has .*load"):
        _ = sslzoo.lod

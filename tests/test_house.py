"""The rules of the house that can be counted: who imports whom, and how long a function may be."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {"modeling_m3dec": "m3dec", "configuration": "m3dec.configuration", "processing": "m3dec.processing"}
ROOMS |= {"hub": "m3dec.hub", "examples": "m3dec.examples"}
LAYOUT = {"build_page"}  # the page of the demo: what stands where


def modules() -> dict[str, Path]:
    """Module name → file, of everything that is installed."""
    found = {}
    for room, package in ROOMS.items():
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / room).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports when it is imported itself."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module for alias in node.names}
    return {module for module in found if module in known and module != name}


def test_imports_go_down_and_never_round_in_a_circle():
    known = modules()
    # A package's own file gives its parts' names to others; its parts do not import it.
    graph = {name: imports_of(name, path, known) for name, path in known.items()}
    for name, imported in graph.items():
        if not name.startswith(("m3dec.hub", "m3dec.examples")):
            wrong = [module for module in imported if module.startswith(("m3dec.hub", "m3dec.examples"))]
            assert not wrong, f"{name} imports {wrong}"
        if name.startswith("m3dec.hub"):
            assert not [module for module in imported if module.startswith("m3dec.examples")], name
        if name.startswith("m3dec.configuration"):
            assert not [module for module in imported if not module.startswith("m3dec.configuration")], name
    front_doors = {"m3dec"}  # `from m3dec import M3DecProcessor` in programs
    list(TopologicalSorter({name: found - front_doors for name, found in graph.items()}).static_order())


def test_no_function_is_longer_than_seventy_lines():
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name not in LAYOUT:
                assert node.end_lineno - node.lineno < 70, f"{path.relative_to(ROOT)}: {node.name}"


def test_the_spine_has_at_most_420_lines():
    assert len((ROOT / "modeling_m3dec" / "modeling_m3dec.py").read_text(encoding="utf-8").splitlines()) <= 420

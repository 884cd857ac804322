"""The import contract: rooms stand in layers, imports fall one way, no cycles."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent / "src" / "netsmith"

# The rooms from the ground up: each may import from the floors below its own, and from itself.
FLOORS: tuple[set[str], ...] = (
    {"errors", "formats", "limits", "models", "presets"},
    {"files", "records"},
    {"trace", "closed_form"},
    {"artifacts", "distributed", "search", "widths"},
    {"data", "networks"},
    {"training"},
    {"exporting"},
    {"reassembly", "shrinking", "morphing"},
    {"config", "report", "ui"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = {_module_name(p): p for p in ROOT.rglob("*.py")}


def _imports(module: str, path: Path) -> set[str]:
    """Modules of netsmith that `module` imports anywhere in its text: function bodies count, strings do not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")
                up = up[: len(up) - (node.level - 1)]
                base = ".".join([*up, base] if base else up)
            names = [f"{base}.{a.name}" for a in node.names] + [base]
        else:
            continue
        for name in names:
            if name in MODULES and name != module:
                # `from a.b import c` names both a.b and, when c is a module, a.b.c: the package alone is no edge then
                found.add(name)
    return found - {f for f in found if any(g.startswith(f + ".") for g in found)}


GRAPH = nx.DiGraph([(m, i) for m, p in MODULES.items() for i in _imports(m, p)])


@pytest.mark.parametrize("module", sorted(m for m in MODULES if _room(m)))
def test_a_module_imports_only_from_the_floors_below(module):
    room = _room(module)
    for imported in GRAPH.successors(module) if module in GRAPH else ():
        target = _room(imported)
        assert target == room or FLOOR[target] < FLOOR[room], f"{module} must not import {imported}"


def test_there_are_no_cycles():
    cycles = list(nx.simple_cycles(GRAPH))
    assert not cycles, f"import cycles: {cycles}"


def test_models_need_nothing_but_torch():
    for module, path in MODULES.items():
        if _room(module) != "models":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [a.name.split(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = [(node.module or "").split(".")[0]]
            for root in roots:
                assert root in {
                    "torch",
                    "netsmith",
                    "__future__",
                    "math",
                    "collections",
                    "dataclasses",
                    "typing",
                }, f"{module} imports {root}"


def test_the_graph_is_the_real_one():
    """Guards the guard: the parser above must see the edges that are certainly there."""
    assert len(MODULES) > 5
    assert GRAPH.number_of_edges() > 5 or len(MODULES) < 12

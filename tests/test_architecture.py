"""Arrows run one way: the order of the rooms, read off every import of every file."""

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

ORDER = [
    {
        "types",
        "arguments",
        "checks",
        "digests",
        "graphs",
        "files",
        "hub",
        "untrusted",
        "registry",
        "shapes",
    },
    {"kernels", "sharding"},
    {"losses"},
    {"network", "adapters", "data"},
    {"models"},
    {"methods", "networks", "generation", "compression", "search", "selection"},
    {"programs", "teachers"},
    {"jaxkd", "papers", "training", "evaluation", "reporting", "interop", "federated"},
    {"recipes", "cli", "cli_runs", "experiments"},
]
"""Rooms from low to high; ``jaxkd`` is what ``import jaxkd`` itself runs."""

LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imports(statements: list[ast.stmt]) -> Iterator[tuple[str, str, int]]:
    """Yield (module, name or "", line) of all imports, those in functions as well."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: name the package in full"
            names = ((node.module or "", a.name, node.lineno) for a in node.names)
            yield from names
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                yield from imports(inner)


@functools.cache
def graph() -> Mapping[str, Mapping[str, int]]:
    """Return what every module of the repository imports of it, and in which line."""
    files = {}
    for path in [*ROOT.glob("jaxkd/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, dict[str, int]] = {}
    for name, path in files.items():
        found[name] = {}
        for module, member, line in imports(ast.parse(path.read_bytes()).body):
            whole = f"{module}.{member}"
            target = whole if whole in files else module
            if target in files:
                found[name].setdefault(target, line)
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "jaxkd" and parts[1:] else parts[0]


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Return one circle, its members in order, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(arrows[node]):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in arrows)), [])


def between_rooms() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {room(module): set() for module in graph()}
    for module, targets in graph().items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    return rooms


def test_every_room_has_its_place():
    assert set(between_rooms()) == set(LEVEL)


def test_imports_go_down():
    up = [
        f"{module} imports {target} (line {line})"
        for module, targets in graph().items()
        for target, line in targets.items()
        if LEVEL[room(target)] > LEVEL[room(module)]
    ]
    assert not up


def test_there_are_no_circles():
    assert not circle({module: set(targets) for module, targets in graph().items()})
    assert not circle(between_rooms())
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_types_import_nothing_of_the_package():
    assert not graph()["jaxkd.types"]


def test_experiments_import_no_other():
    across = [
        f"{module} imports {target} (line {line})"
        for module, targets in graph().items()
        for target, line in targets.items()
        if room(module) == room(target) == "experiments"
        and target.split(".")[1] not in {module.split(".")[1], "common"}
    ]
    assert not across


def test_no_list_of_exports_is_typed_by_hand():
    files = [*ROOT.glob("jaxkd/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    assert not [path for path in files if "__all__" in path.read_text()]


def test_the_training_loop_names_no_paper():
    slugs = [path.name for path in ROOT.glob("jaxkd/papers/[a-z]*")]
    assert slugs
    paper = re.compile(rf"arXiv|et al\.|\b({'|'.join(slugs)})\b", re.IGNORECASE)
    for path in ROOT.glob("jaxkd/training/*.py"):
        assert not paper.search(path.read_text()), path.name
    above = {"methods", "losses", "papers", "programs"}
    assert not between_rooms()["training"] & above

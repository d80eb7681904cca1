"""The documentation's promises: modules are in the reference, code and commands run.

A block of Python that is not run says why in the line before it: ``<!-- not run: needs
teacher, Llama-3.1-8B -->``, names that the page does not define and files that are not
here, or ``<!-- not run: tested in FILE -->``. Both are checked.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
import typing
from pathlib import Path

import pytest

from jaxkd import cli, cli_runs
from jaxkd.interop.families import FAMILIES
from jaxkd.recipes.cache_teacher import cache_teacher
from jaxkd.recipes.command import RECIPES, distill
from jaxkd.reporting.experiment import load_experiment, slugs
from jaxkd.training import MESHES

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tpu/README.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("experiments/*/README.md")),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (needs|tested in) (.*) -->\n)?"
    r"^```(.*)\n((?:(?!```).*\n)*?)```$",
    re.M,
)


def extension(name):
    file = DOCS / "extensions" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_finds_every_module():
    found = {name for name, package in extension("reference").modules() if not package}
    package = DOCS.parent / "jaxkd"
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.stem != "__init__" and path.parent.parent.name != "kernels"
    }
    assert files == found


def test_every_page_is_in_the_table_of_contents():
    contents = re.search(r"{toctree}(.*?)```", (DOCS / "index.md").read_text(), re.S)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    # The reference and the papers' pages are made when the site is built.
    assert pages | {"api", "papers/index"} == set(contents[1].split()[2:])


def test_the_table_of_families_names_every_architecture():
    families = extension("families")
    read = [re.findall(r"`(\w+)`", row[2]) for row in families.rows()]
    expected = [name for family in FAMILIES for name in family.architectures]
    assert sorted(itertools.chain(*read)) == sorted(expected)
    assert all(0 < len(row[0]) < 80 for row in families.rows())
    assert families.TABLE in (DOCS / "models.md").read_text()


@pytest.mark.slow
def test_the_index_of_papers_is_read_at_a_glance():
    papers = extension("papers")
    for slug in slugs():
        cells = papers.row(load_experiment(slug))
        assert len(cells) == len(papers.HEADER)
        link, line, claims, parity, scale = cells
        assert link.startswith("[")
        assert f"]({slug}.md)" in link
        # A cell breaks between words: none is wider than a column of the page.
        assert max(len(word) for cell in cells[1:] for word in cell.split()) < 20
        assert len(line) < 80
        assert len(claims + parity + scale) < 110
        assert re.match(r"\d+ / \d+ / \d+|–$", claims)
        assert re.match(r"(does not fit|fits) v|–$", scale)


def blocks(page, *kinds):
    """Return (how it is excused, by what, code) of a page's blocks of some kinds."""
    found = BLOCK.findall(page.read_text())
    return [(how, what, code) for how, what, kind, code in found if kind in kinds]


def names_of_the_library(code):
    """Return (module, name) of what code that is not run uses of the library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxkd"):
            yield from ((node.module, alias.name) for alias in node.names)
        match node:
            case ast.Attribute(value=ast.Name(id=root)):
                ways = ("jaxkd", f"jaxkd.{root}", f"jaxkd.papers.{root}")
                for module in ways if root == "jaxkd" else ways[1:]:
                    if importlib.util.find_spec(module):
                        yield module, node.attr
                        break


def excused(how, what, code, namespace):
    """Refuse a reason not to run a block that is none, and names that are gone."""
    for module, name in names_of_the_library(code):
        found = hasattr(importlib.import_module(module), name)
        assert found or importlib.util.find_spec(f"{module}.{name}"), (module, name)
    if how == "tested in":
        test = (ROOT / what).read_text()
        assert all(name in test for _, name in names_of_the_library(code))
    for name in what.split(", ") if how == "needs" else ():
        assert name in code
        assert name not in namespace
        assert not Path(name).exists()


RUN = [page for page in PAGES if blocks(page, "python", "{code-cell}")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for how, what, code in blocks(page, "python", "{code-cell}"):
        if how:
            excused(how, what, code, namespace)
        else:  # One epoch shows that it runs; the site's build runs all of them.
            exec(re.sub(r"epochs=\d+", "epochs=1", code), namespace)


COMMANDS = {
    "list": cli.list_experiments,
    "show": cli.show,
    "run": cli_runs.run_command([]),
    "report": cli.report,
    "claims": cli.claims,
    "resume": cli_runs.resume,
    "export": cli.export,
    "compile": cli.compile_,
    "cache-teacher": cache_teacher,
    "distill": distill,
}
TARGETS = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)


def options(command, slug, preset):
    """Return the flags that a command takes, those of a preset's fields too."""
    names = [*inspect.signature(COMMANDS[command]).parameters]
    if command == "run":
        names += [name for name, _ in cli._fields(load_experiment(slug).preset(preset))]
    return {f"--{name.replace('_', '-')}" for name in names}


def fields_of(recipe, prefix=""):
    """Yield the flags of a recipe, and of what is in it."""
    for name, hint in typing.get_type_hints(recipe).items():
        yield prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.".replace("_", "-"))


def command_lines():
    """Return the commands that pages show, in blocks without a language and in line."""
    found = []
    for page in PAGES:
        for _, _, code in blocks(page, "", "bash"):
            found += [ln for ln in code.split("\n") if re.match(r"(jaxkd|make) ", ln)]
        found += re.findall(r"`((?:jaxkd|make) [^`]*)`", page.read_text())
    return dict.fromkeys(found)


@pytest.mark.parametrize("line", command_lines())
def test_a_command_of_a_page_is_one(line):
    program, command, *words = shlex.split(line.replace("…", "X"), comments=True)
    if program == "make":
        assert command in TARGETS
        return
    assert command in COMMANDS
    flags = dict(itertools.pairwise([*words, ""]))
    if command in ("show", "run", "report", "compile") and {*words[:1]} & {*slugs()}:
        preset = flags.get("--preset", "paper" if command == "compile" else "small")
        experiment = load_experiment(words[0])
        assert preset in experiment.presets
        assert flags.get("--mesh", "data") in MESHES
        given = {word for word in words if word.startswith("--")}
        assert given <= options(command, words[0], preset)
    if command == "distill" and {*words[:1]} & {*RECIPES}:
        own = {"help", "config", "print-config", *fields_of(RECIPES[words[0]][0])}
        given = {word[2:] for word in words if word.startswith("--")}
        assert {re.sub("^no-", "", flag) for flag in given} <= own


def test_the_demo_writes_where_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    folder = re.search(r"^DEMO := (.*)$", makefile, re.M)[1]
    assert "--folder $(DEMO)" in makefile
    # `test_cli` holds that the page of a run is report.html in its folder.
    assert f"`{folder}/report.html`" in (ROOT / "README.md").read_text()

"""The rules that keep the tree readable: names are told apart, and nothing is longer than can be taken in."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("amc", "envs", "search", "reports")
LONGEST_CLASS, LONGEST_FILE = 200, 350
LONGER_FILES = {"amc/deploy/program.py": 380, "amc/runtime/cache.py": 400}
"""Files that are longer, with the lines that they may have."""


def modules() -> Iterator[tuple[str, ast.Module, int]]:
    """Path, syntax tree and lines of every module."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.is_symlink() and not (set(path.parts) & {"envs", "search", "reports"} and package == "amc"):
                text = path.read_text()
                yield path.relative_to(ROOT).as_posix(), ast.parse(text), text.count("\n")


MODULES = list(modules())


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for path, tree, _ in MODULES:
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def test_the_whole_tree_is_read():
    assert len(MODULES) > 200
    assert sum(1 for _ in classes()) > 200


def test_no_two_public_classes_share_a_name():
    places = defaultdict(list)
    for path, node in classes():
        if not node.name.startswith("_"):
            places[node.name].append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_bears_the_name_of_a_public_function_beside_it():
    """`amc.run` would be the function on first access and the module on the next."""
    wrong = []
    for path, tree, _ in MODULES:
        if path.endswith("__init__.py"):
            folder = (ROOT / path).parent
            package = ".".join(
                ["amc", *Path(path).parent.parts[1:]] if path.startswith("amc") else ["amc", folder.name]
            )
            exported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                        and node.module != package for alias in node.names}  # fmt: skip
            beside = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
            wrong += [f"{path}: {name}" for name in sorted(exported & beside)]
    assert wrong == []


def test_no_class_is_too_long():
    length = {f"{path}: {node.name}": node.end_lineno - node.lineno + 1 for path, node in classes()}
    assert {name: lines for name, lines in length.items() if lines > LONGEST_CLASS} == {}


def test_no_file_is_too_long():
    assert {path: lines for path, _, lines in MODULES if lines > LONGER_FILES.get(path, LONGEST_FILE)} == {}


ROOMS_WITHOUT_CLOSURES = (
    "amc/batch", "amc/evaluation", "amc/latency", "amc/pipeline", "amc/reconstruction", "envs", "reports", "search",
)  # fmt: skip


@pytest.mark.parametrize("room", ROOMS_WITHOUT_CLOSURES)
def test_no_function_is_defined_inside_another_one(room):
    """A callback is a named function, a method or an object. Only the wrapper of a decorator is an exception."""
    inner = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree, _ in MODULES
        if path.startswith(f"{room}/")
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        for node in ast.walk(outer)
        if isinstance(node, ast.FunctionDef) and node is not outer and not _is_wrapper(node)
    ]
    assert inner == []


def _is_wrapper(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("functools.wraps(") for decorator in function.decorator_list)


def private_uses() -> Iterator[str]:
    """Where a test or a benchmark uses what begins with an underscore in a module of amc's."""
    own = {node.name for _, tree, _ in MODULES for node in ast.walk(tree)
           if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.startswith("_")}  # fmt: skip
    own |= {target.id for _, tree, _ in MODULES for node in tree.body if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name) and target.id.startswith("_")}  # fmt: skip
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                names = [node.attr]
            yield from (f"{path.name}: {name}" for name in names if name in own and not name.startswith("__"))


def test_tests_use_no_private_members_of_other_modules():
    assert sorted(set(private_uses())) == []


def test_the_wheel_has_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    beside = {folder: name for name, folder in settings["package-dir"].items()}
    found = set()
    for folder, package in beside.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(ROOT / folder).parts
            if not (folder == "amc" and inner and inner[0] in beside):  # links to the folders beside amc
                found.add(".".join((package, *inner)))
    assert set(settings["packages"]) == found

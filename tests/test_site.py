"""The documentation site: what is written from the code is complete, and the gallery needs the public API only."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

import amc
import amc.testing
from amc.commands import COMMANDS
from amc.commands.parser import make_parser
from amc.config.schema import json_schema
from benchmarks.picture import ROW, measured

DOCS = Path(__file__).parent.parent / "docs"
GALLERY = sorted((DOCS / "gallery").glob("plot_*.py"))
PUBLIC = {
    "amc": set(amc.__all__),
    "amc.search": {"load_searcher"},
    "amc.testing": set(amc.testing.__all__),
}


@pytest.fixture(scope="module")
def generated():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
        yield import_module("generated")
        sys.modules.pop("generated")


def test_every_option_of_every_command_is_on_the_page(generated):
    page = generated.command_line()
    for name, sub in make_parser(COMMANDS)[1].items():
        section = page.partition(f"## amc {name}\n")[2].partition("\n## ")[0]
        assert [flag for flag, _ in sub.flags() if f"`{flag}" not in section and f", {flag}" not in section] == []


def test_every_key_of_a_configuration_is_on_the_page(generated):
    page, schema = generated.configuration(), json_schema()
    keys = [*schema["properties"], *(key for part in schema["$defs"].values() for key in part["properties"])]
    assert [key for key in keys if f"`{key}`" not in page] == []
    assert "| `evaluations` | whole number | `60` | policies to evaluate |" in page


def test_text_of_the_code_is_shown_as_it_is(generated):
    assert generated.plain("a_b [auto: 50%%] | *") == r"a\_b \[auto: 50%\] \| \*"


def test_the_gallery_is_large_enough_to_be_one():
    assert len(GALLERY) >= 10


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_the_gallery_uses_the_public_interface(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {("amc", node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "amc"}  # fmt: skip
    used |= {(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             and node.module.startswith("amc") for alias in node.names}  # fmt: skip
    assert used
    assert {(module, name) for module, name in used if name not in PUBLIC.get(module, ())} == set()


def test_the_whole_public_interface_is_in_the_reference():
    pages = "".join((DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8") for name in ("python", "errors"))
    assert [name for name in amc.__all__ if not re.search(rf"\bamc\.{name}\b", pages)] == []


def test_the_picture_is_of_the_results():
    row = measured((DOCS / "results.md").read_text(encoding="utf-8"), ROW)
    alt = f"{row['accuracy']:.2f} and {row['fine-tuned']:.2f} %, half of the MACs, {row['model.onnx']:.0%} of the file"
    for page in (DOCS.parent / "README.md", DOCS / "index.md"):
        assert alt.replace("58%", "58 %") in page.read_text(encoding="utf-8")
    assert abs(row["MACs"] - 0.5) < 0.01

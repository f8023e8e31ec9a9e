"""How Sphinx builds the site: `scripts/docs`."""

import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import a11y_pygments  # noqa: E402, F401
from pygments.lexers.special import TextLexer  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx_gallery.sorting import FileNameSortKey  # noqa: E402

import amc  # noqa: E402

logging.getLogger().setLevel(logging.WARNING)  # a11y_pygments, which the theme imports, shows all records

project, author, copyright = "amc", "the authors of amc", "the authors of amc"
release = version = amc.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "generated",
]
exclude_patterns = ["_build", "gallery"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
suppress_warnings = ["config.cache"]  # the gallery's sort key is a class

html_theme = "furo"
html_title = "amc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

smartquotes = False  # options begin with two hyphens
default_role = "py:obj"  # `amc.run` in docstrings is a link where there is such a name, and code elsewhere
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
nitpicky = False  # annotations name types of torch and numpy, whose inventories would need the network

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "ignore_pattern": r"accelerator\.py",  # an example writes it
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1,
    "reset_argv": lambda *_: [],
    "capture_repr": ("_repr_html_", "__str__"),
    "show_signature": False,
}


def setup(app: Sphinx) -> None:
    app.add_lexer("csv", TextLexer)

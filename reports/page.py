"""The frame that all pages share: template environment, style, script, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from amc.reports import human

FOLDER = Path(__file__).parent


@cache
def _asset(name: str) -> str:
    """A style sheet or script, with the line ends that a browser sees."""
    return (FOLDER / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows this text inline.

    >>> source_hash("")
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def content_policy() -> str:
    """The pages' Content-Security-Policy: their own style and script, and nothing from elsewhere."""
    allowed = f"script-src {source_hash(_asset('page.js'))}; style-src {source_hash(_asset('page.css'))}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page as text. All values are escaped; only the package's own style and script are inserted as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(human.FILTERS)
    frame = {
        "content_policy": Markup(content_policy()),
        "style": Markup(_asset("page.css")),
        "script": Markup(_asset("page.js")),
    }
    text = environment.get_template(template).render({**values, **frame})
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written

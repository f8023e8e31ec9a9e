"""A JSON schema of the configuration, for editors that check and complete YAML."""

from __future__ import annotations

from typing import Any

from amc.config.settings import Config


def json_schema() -> dict[str, Any]:
    """The schema of a file for ``--config``.

    >>> json_schema()["properties"]["seed"]["default"]
    0
    """
    found = _for_people(Config.model_json_schema())
    for name in ("flops", "params", "size", "memory", "latency", "branches"):
        limit = found["$defs"]["BudgetConfig"]["properties"][name]
        limit["anyOf"].insert(0, {"type": "number"})
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Configuration of amc"}
    return {**head, **{key: value for key, value in found.items() if key != "title"}}


def _for_people(schema: Any) -> Any:
    """Without what only the command line needs, and with the other ways to write lists and empty sections."""
    if isinstance(schema, list):
        return [_for_people(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _for_people(value) for key, value in schema.items()
             if not (key in ("flag", "title") and isinstance(value, str))}  # fmt: skip
    if isinstance(found.get("description"), str):
        found["description"] = found["description"].replace("%%", "%")
    choices = found.get("anyOf", ())
    if any(part.get("type") == "array" for part in choices):  # a text with commas is a list, too
        found["anyOf"] = [*choices, {"type": "string"}]
    return found

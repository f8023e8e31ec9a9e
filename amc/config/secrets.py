"""Passwords in addresses: not written into files, not shown, and taken from the environment when a run goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from amc.errors import ConfigError

MASK = "***"
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)([^\s/?#@:]*)(:[^\s]*)?@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&;](?:[a-z_-]*(?:pass|passwd|password|pwd|token|secret|key|credential)[a-z_-]*)=)([^&;\s'\"]+)", re.IGNORECASE
)
_VARIABLE = re.compile(r":?\$(\w+|\{\w+\})")
PLACES = {"search.storage": "AMC_STORAGE", "log": "AMC_LOG"}
"""Settings that may hold a password, and the variables that give them when a run goes on."""


def masked(text: str) -> str:
    """A text with the passwords in its addresses masked; ``$NAME``, which stands for one, stays.

    >>> masked("postgresql://amc:secret@db/studies?password=secret&sslmode=require")
    'postgresql://amc:***@db/studies?password=***&sslmode=require'
    >>> masked("postgresql://amc:$PASSWORD@db/studies"), masked("sqlite:///a@b.db")
    ('postgresql://amc:$PASSWORD@db/studies', 'sqlite:///a@b.db')
    """

    def user(found: re.Match[str]) -> str:
        word = found[3] or ""
        return f"{found[1]}{found[2]}{word if len(word) < 2 or _VARIABLE.fullmatch(word) else ':' + MASK}@"

    def query(found: re.Match[str]) -> str:
        return found[0] if _VARIABLE.fullmatch(found[2]) else f"{found[1]}{MASK}"

    return _QUERY.sub(query, _USER.sub(user, text))


def public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain values, with the passwords masked: what files and reports hold.

    >>> public({"log": "mlflow:http://me:secret@host"})
    {'log': 'mlflow:http://me:***@host'}
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for path in PLACES:
        *section, key = path.split(".")
        holder = found.get(section[0], {}) if section else found
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = masked(holder[key])
    return found


def with_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a file holds, with the masked addresses taken from the environment. Raises ConfigError."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for path, variable in PLACES.items():
        *section, key = path.split(".")
        holder = found.get(section[0], {}) if section else found
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, str) and MASK in value:
            whole = os.environ.get(variable, "")
            if masked(whole) != value:
                told = f"${variable} is {masked(whole)}" if whole else "its password is not kept in files"
                raise ConfigError(f"the run uses {value}, but {told}: put the whole address into ${variable}.")
            holder[key] = whole
    return found

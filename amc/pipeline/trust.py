"""Which folders are trusted. A run's folder may come from anybody, and its configuration names files and commands.

Those are not executed, written to or downloaded unless the user trusts the folder (``--trust``) or made the run. In a
run of the user's own, the journal has an authentication code of the configuration, made with the user's secret key
(`amc.runtime.secret`).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from pathlib import Path

from amc.config import Config
from amc.errors import AmcError, BundleError
from amc.latency import runs_code
from amc.runtime.cache import is_own_folder
from amc.runtime.files import MIB, read_bytes
from amc.runtime.journal import Journal, read_records
from amc.runtime.plugins import is_plugin
from amc.runtime.secret import code_of, user_key


def code_named(config: Config) -> list[str]:
    """The Python files and commands that a run of this configuration would execute."""
    named = [
        *(config.search.operator_names or ()),
        config.model.name,
        config.data.source,
        config.objective,
        config.search.criterion,
        config.search.reward,
        config.search.searcher,
        config.finetune.schedule,
        config.finetune.recover,
        config.train.sparsify or "",
        config.train.sparse or "",
    ]
    found = [name for name in named if is_plugin(name)]
    if config.search.latency_model and runs_code(config.search.latency_model):
        found.append(config.search.latency_model)
    return found


def refuse_plugins(config: Config, source: Path, allowed: Collection[str] = ()) -> None:
    """Raise BundleError if the folder or file ``source`` names code to run that is not ``allowed``."""
    found = [name for name in code_named(config) if name not in allowed]
    if found:
        raise BundleError(f"{source} would run {', '.join(found)}: if you trust that, add --trust.")


def without_download(config: Config) -> Config:
    """The configuration without downloads, for a folder that is not trusted."""
    return config.replace(data=config.data.replace(download=False))


def refuse_foreign(config: Config, folder: Path) -> None:
    """Raise BundleError if resuming the run in a folder would execute Python files, or write outside the folder.

    A cache in a folder that only the user can write to is trusted.
    """
    refuse_plugins(config, folder)
    if config.search.storage:
        raise BundleError(
            f"{folder} would use the study in another place that it names: if you trust that, add --trust."
        )
    if config.cache is not None and config.cache not in ("off", "auto") and not is_own_folder(Path(config.cache)):
        raise BundleError(f"{folder} would write into the cache {config.cache}: if you trust that, add --trust.")
    if config.log:
        raise BundleError(f"{folder} would log to another place that it names: if you trust that, add --trust.")


def sign(folder: Path, config: Config, journal: Journal) -> None:
    """Record in the journal that this user runs the folder's configuration."""
    code = _code(folder, config)
    if code is not None and (journal.last("signature") or {}).get("code") != code:
        journal.append("signature", code=code)


def is_own(folder: Path, config: Config) -> bool:
    """Whether this user has run the folder's configuration, with the same files of code."""
    try:
        records = read_records(folder / "journal.jsonl")
        codes = [record.get("code") for record in records if record["kind"] == "signature"]
        code = _code(folder, config) if codes else None
    except (AmcError, OSError):
        return False
    return code is not None and hmac.compare_digest(str(codes[-1]).encode(), code.encode())


def needs_trust(folder: Path, config: Config) -> bool:
    """Whether resuming the run needs ``--trust``, for instance because the user's key cannot be read."""
    if is_own(folder, config):
        return False
    try:
        refuse_foreign(config, folder)
    except BundleError:
        return True
    return False


def file_code(digest: str) -> str | None:
    """The code of a file of this user's making, by its SHA-256; None without a key."""
    key = user_key()
    return None if key is None else code_of(key, "file", digest)


def is_own_file(digest: str, code: object) -> bool:
    """Whether ``code``, from a journal, is this user's authentication code for a file with this SHA-256."""
    own = file_code(digest)
    return own is not None and isinstance(code, str) and hmac.compare_digest(code.encode(), own.encode())


def _code(folder: Path, config: Config) -> str | None:
    """The authentication code of a run: of its configuration file, and of the paths of the code that it names."""
    key = user_key()
    if key is None:
        return None
    places = [str(Path(name.rpartition(":")[0] if is_plugin(name) else ".").resolve()) for name in code_named(config)]
    return code_of(key, "run", read_bytes(folder / "config.yaml", MIB, own=True), *places)

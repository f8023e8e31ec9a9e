"""A file is the old one or the new one, never half of either."""

import json
from pathlib import Path

import pytest

from amc.runtime.files import replacing, sweep, write_json, write_text


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def fail(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("out of power")


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert content(tmp_path) == {"a.txt": "new"}


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_exception_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="out of power"):
        fail(path)
    assert content(tmp_path) == {"a.txt": "old"}


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of power"):
        fail(tmp_path / "sub" / "a.txt")
    assert content(tmp_path / "sub") == {}


def test_text_is_utf8_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "8×8 → 10\n")
    assert path.read_bytes() == "8×8 → 10\n".encode()


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "×"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, {1, 2}])
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert content(tmp_path) == {"a.json": "1\n"}


def test_sweeping_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    with replacing(tmp_path / "b.txt") as temporary:
        temporary.write_text("b")
        (tmp_path / "left").write_bytes(temporary.read_bytes())
        left = tmp_path / temporary.name.replace("b.txt", "c.txt")
    left.write_text("half")
    sweep(tmp_path)
    assert set(content(tmp_path)) == {"a.txt", "b.txt", "left"}

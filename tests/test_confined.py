"""ONNX files of anybody's run in a process of their own: whatever they do there, it is one line here."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from amc.cli import main
from amc.errors import ExportError
from amc.latency import ConfinedRunner, Runner, confined, confined_process

FLOAT = TensorProto.FLOAT
X = np.ones((2, 3), np.float32)


def saved(path: Path, nodes: list, tensors: list = (), shape=("N", 3), external: str | None = None) -> Path:
    """A model of nodes from ``x`` to ``y``, with its tensors in the file ``external`` beside it."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)], list(tensors),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external is not None:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def weighted(path: Path, location: str) -> Path:
    """``x + w`` where ``w`` is said to be in another file."""
    tensor = helper.make_tensor("w", FLOAT, [3], np.arange(3, dtype=np.float32).tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return saved(path, [helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def endless(path: Path) -> Path:
    """A loop of 2⁶² turns."""
    state = helper.make_tensor_value_info("s", FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Tanh", ["s"], ["t"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []), state],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", FLOAT, None)],
    )  # fmt: skip
    turns = helper.make_tensor("n", TensorProto.INT64, [], [1 << 62])
    on = helper.make_tensor("on", TensorProto.BOOL, [], [True])
    return saved(path, [helper.make_node("Loop", ["n", "on", "x"], ["y"], body=body)], [turns, on])


def large(path: Path) -> Path:
    """A few bytes that become 400 GB when they run."""
    size = helper.make_tensor("size", TensorProto.INT64, [2], [10**9, 100])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["a"], keepdims=0), helper.make_node("Expand", ["a", "size"], ["b"]),
        helper.make_node("Sin", ["b"], ["y"]),
    ]  # fmt: skip
    return saved(path, nodes, [size])


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["measure", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("amc: ")
    return line


def test_it_gives_what_the_runtime_gives_here(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])])
    with ConfinedRunner(path) as runner:
        for _ in range(2):
            for given in (X, {"x": X}):
                assert np.array_equal(runner.outputs(given)[0], Runner(path).outputs(X)[0])
        assert runner.signature == Runner(path).signature
        with pytest.raises(ExportError, match="takes x, not z"):
            runner.outputs({"z": X})
        with pytest.raises(ExportError, match=r"cannot run .* invalid dimensions for input: x"):
            runner.outputs(np.ones((2, 4), np.float32))
        assert runner.outputs(X)


def test_a_loop_without_an_end_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(confined, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(confined, "SAMPLE_SECONDS", 0.0)
    assert "m.onnx takes longer than 1 s to run on ONNX Runtime." in complaint(
        capsys, str(endless(tmp_path / "m.onnx"))
    )


def test_what_takes_too_much_memory_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(confined, "MEMORY", 0.1)
    assert "cannot run" in complaint(capsys, str(large(tmp_path / "m.onnx")))


@pytest.mark.parametrize("shape", [(2**31, 3, 224, 224), (2**62, 2**62), (0, 3), (1, 0)])
def test_inputs_of_gigabytes_or_of_nothing_are_not_made(tmp_path: Path, capsys, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])], shape=shape)
    assert f"takes inputs of shape {list(shape)}" in complaint(capsys, str(path))


@pytest.mark.parametrize(
    ("when", "place"), [("loaded", "        session = _session("), ("run", "            feeds = ")]
)
def test_a_crash_of_the_runtime_is_one_line(tmp_path: Path, capsys, monkeypatch, when: str, place: str) -> None:
    script, text = tmp_path / "crashes.py", Path(confined_process.__file__).read_text()
    assert place in text
    script.write_text(text.replace(place, f"{' ' * (len(place) - len(place.lstrip()))}os.abort()\n{place}"))
    monkeypatch.setattr(confined_process, "__file__", str(script))
    path = saved(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])])
    assert f"crashes ONNX Runtime when it is {when} (signal 6)." in complaint(capsys, str(path))


# Tensors in other files


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "", "sub/../../w.bin", "missing", "link", "fifo", "sub"]
)
def test_tensors_are_in_regular_files_of_the_model_s_folder(tmp_path: Path, capsys, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(12))
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "link").symlink_to(tmp_path / "w.bin")
    os.mkfifo(tmp_path / "m" / "fifo")
    path = weighted(tmp_path / "m" / "m.onnx", location)
    assert f"cannot load {path}: it stores tensors in {location!r}" in complaint(capsys, str(path))


def test_tensors_in_a_folder_that_is_a_link_are_not_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w.bin").write_bytes(bytes(12))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "sub").symlink_to(tmp_path / "other")
    assert "not a regular file in its folder" in complaint(
        capsys, str(weighted(tmp_path / "m" / "m.onnx", "sub/w.bin"))
    )


def test_tensors_of_gigabytes_are_not_read(tmp_path: Path, capsys) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate((2 << 30) + 1)  # takes no room
    assert "more than 2048 MiB" in complaint(capsys, str(weighted(tmp_path / "m.onnx", "w.bin")))


def test_tensors_beside_the_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for location in ("w.bin", "sub/w.bin"):
        (tmp_path / location).write_bytes(np.arange(3, dtype=np.float32).tobytes())
        with ConfinedRunner(weighted(tmp_path / "m.onnx", location)) as runner:
            assert np.array_equal(runner.outputs(X)[0], X + np.arange(3, dtype=np.float32))


def test_tensors_of_inner_graphs_are_looked_at(tmp_path: Path, capsys) -> None:
    inner = weighted(tmp_path / "inner.onnx", "../w.bin")
    tensor = onnx.load(str(inner), load_external_data=False).graph.initializer[0]
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    assert "stores tensors in '../w.bin'" in complaint(capsys, str(saved(tmp_path / "m.onnx", nodes)))

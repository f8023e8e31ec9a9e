"""The process that runs an ONNX file of anybody's (`amc.latency.confined`). It imports nothing of amc.

Its argument is JSON: the model, the threads, and the bytes of memory that it may take. It tells of the model, then
gives the outputs for whatever inputs it is sent. A message is its length, and then JSON or an npz archive of arrays.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LARGEST = 2 << 30
"""Bytes of one file of tensors."""


def write(stream: IO[bytes], content: bytes) -> None:
    """Send one message."""
    stream.write(len(content).to_bytes(8, "big") + content)
    stream.flush()


def read(stream: IO[bytes], most: int) -> bytes:
    """Receive one message of at most ``most`` bytes. Raises EOFError, and ValueError for a longer one."""
    head = stream.read(8)
    size = int.from_bytes(head, "big")
    if size > most:
        raise ValueError(f"a message of {size} bytes")
    content = stream.read(size)
    if len(head) < 8 or len(content) < size:
        raise EOFError
    return content


def packed(arrays: Any) -> bytes:
    """Arrays, in order, as bytes."""
    import numpy as np

    file = io.BytesIO()
    np.savez(file, **{str(number): array for number, array in enumerate(arrays)})
    return file.getvalue()


def unpacked(content: bytes) -> list[Any]:
    """The arrays that were packed. Raises ValueError and others for what are none: nothing is unpickled."""
    import numpy as np

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return [archive[str(number)] for number in range(len(archive.files))]


def check_external_data(model: Path) -> None:
    """Raise ValueError where a model keeps tensors in files outside of its folder, or in no regular file."""
    import onnx

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception:  # noqa: BLE001  (of protobuf, whose errors have no name of their own)
        raise ValueError("it is no ONNX file.") from None
    for name in sorted(set(_locations(proto))):
        path = model.parent / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"it keeps tensors in {name!r}, which is not a file in its folder")
        try:
            status = path.lstat()
        except OSError as error:
            raise ValueError(f"it keeps tensors in {name!r}: {error.strerror}") from None
        beside = path.parent.resolve() == model.parent.resolve() / Path(name).parent
        if not stat.S_ISREG(status.st_mode) or not beside:
            raise ValueError(f"it keeps tensors in {name!r}, which is no regular file in its folder")
        if status.st_size > LARGEST:
            raise ValueError(f"it keeps tensors in {name!r}, which has more than {LARGEST >> 20} MiB")


def _locations(message: Any) -> Iterator[str]:
    """The files that the tensors anywhere in a protobuf message are said to be in."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.data_location == message.EXTERNAL:
            yield next((entry.value for entry in message.external_data if entry.key == "location"), "")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "add") else [value]:
                yield from _locations(inner)


def _limit(memory: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _main(asked: str) -> None:
    given = json.loads(asked)
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no message
    import onnxruntime  # noqa: F401  (before the limit: it is the model that is limited)

    _limit(given["memory"])
    try:
        check_external_data(Path(given["model"]))
        session = _session(Path(given["model"]), given["threads"])
        inputs = [[value.name, value.type, list(value.shape or [])] for value in session.get_inputs()]
        about: dict[str, Any] = {"inputs": inputs, "outputs": [value.name for value in session.get_outputs()]}
    except Exception as error:  # noqa: BLE001  (protobuf and the runtime each have their own)
        about = {"error": _said(error)}
    write(told, json.dumps(about).encode())
    while "error" not in about:
        try:
            content = read(sys.stdin.buffer, 1 << 40)
        except EOFError:
            return
        try:
            feeds = dict(zip([name for name, *_ in inputs], unpacked(content), strict=True))
            answer = b"\0" + packed(session.run(None, feeds))
        except Exception as error:  # noqa: BLE001
            answer = b"\1" + _said(error).encode()
        write(told, answer)


def _said(error: Exception) -> str:
    return (str(error).strip() or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__))[:2000]


if __name__ == "__main__":
    _main(sys.argv[1])

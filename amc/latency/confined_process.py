"""The process that runs an untrusted ONNX file (see `amc.latency.confined`). It imports nothing from amc.

Its argument is JSON: the model's path, the number of threads, and the memory limit in bytes. It first writes a
description of the model, then reads inputs and writes outputs. A message is its length (8 bytes, big-endian), followed
by JSON or by an npz archive of arrays.
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
"""Most bytes of one file with external tensors."""


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


def pack(arrays: Any) -> bytes:
    """Serialise arrays, in order."""
    import numpy as np

    file = io.BytesIO()
    np.savez(file, **{str(number): array for number, array in enumerate(arrays)})
    return file.getvalue()


def unpack(content: bytes) -> list[Any]:
    """Deserialise arrays. Nothing is unpickled; raises ValueError, KeyError, OSError or EOFError for other content."""
    import numpy as np

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return [archive[str(number)] for number in range(len(archive.files))]


def check_external_data(model: Path) -> None:
    """Raise ValueError where a model stores tensors outside its folder, or in something other than a regular file."""
    import onnx

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception:  # noqa: BLE001  (protobuf's errors share no base class)
        raise ValueError("it is not an ONNX file.") from None
    for name in sorted(set(_locations(proto))):
        path = model.parent / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"it stores tensors in {name!r}, which is not a file in its folder")
        try:
            status = path.lstat()
        except OSError as error:
            raise ValueError(f"it stores tensors in {name!r}: {error.strerror}") from None
        beside = path.parent.resolve() == model.parent.resolve() / Path(name).parent
        if not stat.S_ISREG(status.st_mode) or not beside:
            raise ValueError(f"it stores tensors in {name!r}, which is not a regular file in its folder")
        if status.st_size > LARGEST:
            raise ValueError(f"it stores tensors in {name!r}, which has more than {LARGEST >> 20} MiB")


def _locations(message: Any) -> Iterator[str]:
    """Names of the external files of all tensors in a protobuf message, at any depth."""
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


def _main(argument: str) -> None:
    request = json.loads(argument)
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's output must not mix with the messages
    import onnxruntime  # noqa: F401  (imported before the limit, which is for the model alone)

    _limit(request["memory"])
    try:
        check_external_data(Path(request["model"]))
        session = _session(Path(request["model"]), request["threads"])
        inputs = [[value.name, value.type, list(value.shape or [])] for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        metadata = session.get_modelmeta().custom_metadata_map
        about: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "metadata": metadata}
    except Exception as error:  # noqa: BLE001  (the errors of protobuf and of the runtime share no base class)
        about = {"error": _message(error)}
    write(channel, json.dumps(about).encode())
    while "error" not in about:
        try:
            content = read(sys.stdin.buffer, 1 << 40)
        except EOFError:
            return
        try:
            feeds = dict(zip([name for name, *_ in inputs], unpack(content), strict=True))
            answer = b"\0" + pack(session.run(None, feeds))
        except Exception as error:  # noqa: BLE001
            answer = b"\1" + _message(error).encode()
        write(channel, answer)


def _message(error: Exception) -> str:
    return (str(error).strip() or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__))[:2000]


if __name__ == "__main__":
    _main(sys.argv[1])

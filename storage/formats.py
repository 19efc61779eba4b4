"""Closed formats: files that can run code when they are loaded do not enter or leave a store."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from storage.errors import Refused

_PICKLED = frozenset((".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".msgpack", ".mar"))
_OTHERS = frozenset((".h5", ".hdf5", ".keras", ".npy", ".npz", ".pyc", ".so"))
_MAGIC = {b"PK\x03\x04": "a zip archive", b"\x89HDF": "HDF5", b"\x93NUMPY": "a NumPy file"}
_WANT = "results are kept as safetensors, Parquet, JSON or text"


def check_name(name: str) -> None:
    """Raise `Refused` if the extension is one of a format that may hold pickled code."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _PICKLED | _OTHERS:
        raise Refused(f"{name}: {suffix} files can run code when loaded and are refused; {_WANT}")


def check_content(path: Path, name: str) -> None:
    """Raise `Refused` if the file `path`, called `name`, is not what its name says or may hold a pickle.

    safetensors is judged by its own header: a header of 640 bytes begins like a pickle of protocol 2.
    """
    check_name(name)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(max(size - 4, 0))
        tail = file.read(4)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".safetensors":
        if len(head) < 10 or int.from_bytes(head[:8], "little") > size - 8 or head[8:9] != b"{":
            raise Refused(f"{name}: not a safetensors file ({size} bytes); {_WANT}")
        return
    if suffix == ".parquet":
        if head[:4] != b"PAR1" or tail != b"PAR1":
            raise Refused(f"{name}: not a Parquet file ({size} bytes); {_WANT}")
        return
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        found = "a pickle"
    if found:
        raise Refused(f"{name}: its content is {found}, which can run code when loaded; {_WANT}")

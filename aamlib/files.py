"""Files written whole or not at all, and the lock of a run folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import safetensors.numpy
import torch
from filelock import FileLock, SoftFileLock, Timeout
from safetensors import SafetensorError

from aamlib.config import first_line

DATA_DIR = Path(__file__).resolve().parents[1] / "data"
NUMBER = "[0-9]" * 6  # a round's, in names of files: copies that a system or a cloud makes have others


class RunFolderError(RuntimeError):
    """A run folder that cannot be used as asked; the message says why and what to do next."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside `path`, which replaces it when the block ends.

    Raises RunFolderError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)  # with the rights that the umask leaves, unlike `tempfile`'s
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs only what may be written
            os.fsync(written.fileno())
        _replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(
            f"cannot write {path}: {reason}; what was there before is untouched. Make room or choose another folder, "
            "then call again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it has become `path`, or never was
            temporary.unlink()


def _replace(temporary: Path, path: Path) -> None:
    """Windows refuses while anyone reads `path`, which takes a moment: try again for a second."""
    end = time.monotonic() + 1
    while True:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def not_hidden(root: Path, pattern: str) -> list[Path]:
    """The files that match below the folder, outside of hidden folders: in these a run may be half copied.

    Links are followed; a folder that can be reached in several ways counts once.
    """
    found, seen = [], set()
    # Unlike rglob, it goes on where a folder is taken away meanwhile.
    for folder, below, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        visible = [name for name in below if not name.startswith(".")]
        below[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        found += [path for name in names if not name.startswith(".") and (path := Path(folder, name)).match(pattern)]
    return found


def fill_in(path: str | Path, texts: Mapping[str, str]) -> None:
    """Replace what stands in a text file between the lines `<!-- name -->` and `<!-- /name -->`, for each name.

    Raises ValueError if there is no such place; the file is then as it was.
    """
    content = Path(path).read_text(encoding="utf-8")
    for name, text in texts.items():
        before, start, rest = content.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        if not end:
            raise ValueError(
                f"{path} has no lines <!-- {name} --> and <!-- /{name} -->; add them where the text belongs."
            )
        content = f"{before}{start}\n{text}\n\n{end}{after}"
    write_bytes(path, content.encode())


def check_kept(run_dir: Path, name: str) -> None:
    """Raise RunFolderError if the folder has lost the file that tells with what its checkpoints were made."""
    if not (run_dir / name).exists() and any(run_dir.glob("checkpoint*")):
        raise RunFolderError(
            f"{run_dir} holds checkpoints, but no {name}, which tells with what they were made; copy it back, or "
            "choose another folder."
        )


def drop_temporary(folder: Path) -> None:
    """Remove what `replacing` could not, for its process was killed. No other process may be writing in the folder."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name):
            path.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_torch(path: str | Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts of them, atomically."""
    buffer = io.BytesIO()  # torch's own writer has no clear error for a full disk
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_torch(path: str | Path) -> dict[str, Any]:
    """Read what `write_torch` wrote, as `load_weights_only` does. Raises RunFolderError if it cannot be read."""
    try:
        return load_weights_only(path)
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read ({error}); remove it to start again.") from error


def load_weights_only(source: str | Path | io.BytesIO) -> dict[str, Any]:
    """A dict that torch saved, by its weights-only reader: nothing in it is executed.

    Raises ValueError for what is damaged, no dict, or holds more than tensors, numbers, text and lists of them.
    """
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)  # wherever the tensors were
    except Exception as error:  # torch raises nearly anything for bytes of another kind
        is_refused = "weights_only" in str(error)  # in a text that advises to trust the file
        reason = "it is damaged, or holds more than tensors, numbers and text" if is_refused else first_line(error)
        raise ValueError(reason) from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} in place of named tensors")
    return content


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV atomically."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def make_folder(path: str | Path) -> Path:
    """Make the folder and those above it, unless they are there. Raises RunFolderError when that cannot be done."""
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    return path


def _unusable(folder: str | Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot write in {folder}: {error.strerror or error}; choose another folder.")


@contextlib.contextmanager
def lock_run(run_dir: str | Path, name: str = "run.lock", *, wait: float = 0.0) -> Iterator[Path]:
    """Create the folder if need be and hold its lock, waiting for `wait` seconds at most; yields its absolute path.

    The operating system frees the lock of a process that ends, however it ends, if the file system knows locks. Raises
    RunFolderError when another process holds it or the folder cannot be made.
    """
    run_dir = Path(run_dir).expanduser().absolute()
    lock = FileLock(make_folder(run_dir) / name)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        # What stands in for a lock where the file system has none outlives its process.
        more = f" If there is none any more, remove {lock.lock_file}." if isinstance(lock, SoftFileLock) else ""
        raise RunFolderError(
            f"{run_dir} is in use by another process; wait for it or choose another folder.{more}"
        ) from None
    except OSError as error:
        raise _unusable(run_dir, error) from error
    try:
        yield run_dir
    finally:
        lock.release()


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically as zstd-compressed safetensors; Atari frames shrink a hundredfold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, pa.output_stream(temporary, compression="zstd") as stream:
        stream.write(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote. Raises RunFolderError if it cannot be read."""
    try:
        with pa.input_stream(path, compression="zstd") as stream:
            return safetensors.numpy.load(stream.read())
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); copy it again, or remove it.") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

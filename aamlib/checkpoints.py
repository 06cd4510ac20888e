"""Checkpoints of a run: the student, the rest of its state, and the pool's frames in compressed segments."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from aamlib.files import (
    NUMBER,
    RunFolderError,
    file_hash,
    load_arrays,
    read_torch,
    save_arrays,
    write_bytes,
    write_json,
    write_torch,
)
from aamlib.networks import MCDropoutDQN
from aamlib.replay import FramePool
from aamlib.runs import read_config

_SEGMENTS = f"{'[0-9]' * 9}-{'[0-9]' * 9}.zst"  # of the pool, by the vector steps [first, last)
_STATES_PER_SEGMENT = 2_000  # to write one takes three times its memory; so much, the allocator has at hand


def save_checkpoint(
    run_dir: Path, number: int, student: Mapping[str, Tensor], content: dict[str, Any], pool: FramePool
) -> None:
    """Write checkpoint `number`.

    `student` is its weights, `content` what `read_torch` accepts. The manifest, with a hash of every file, is
    written last: a checkpoint without one does not exist. Raises RunFolderError when it cannot be written; the one
    before still stands.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    weights, state = folder / f"{number:06d}.safetensors", folder / f"{number:06d}.pt"
    write_bytes(weights, safetensors.torch.save({name: tensor.contiguous() for name, tensor in student.items()}))
    write_torch(state, {**content, "labels": pool.labels})
    known = _hashes_of_segments(run_dir)  # as they were written: by now they could be damaged
    names = [path.relative_to(run_dir).as_posix() for path in (weights, state, *_save_pool(run_dir / "pool", pool))]
    write_json(state.with_suffix(".json"), {name: known.get(name) or file_hash(run_dir / name) for name in names})


def drop_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what only they needed."""
    folder = run_dir / "checkpoints"
    manifests = _manifests(run_dir)
    for manifest in manifests[keep:]:
        manifest.unlink()
    needed = {name for manifest in manifests[:keep] for name in _hashes(manifest)}
    for path in [
        *folder.glob(f"{NUMBER}.pt"),
        *folder.glob(f"{NUMBER}.safetensors"),
        *(run_dir / "pool").glob(_SEGMENTS),
    ]:
        if path.relative_to(run_dir).as_posix() not in needed:
            path.unlink()


def load_checkpoint(run_dir: Path, pool: FramePool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest undamaged checkpoint's student and content, its frames put into the empty `pool`; None without one.

    Warns of damaged checkpoints that it passes over. Raises RunFolderError if all are damaged, or there is none of
    a run that has tables already, as in a published one.
    """
    manifests = _manifests(run_dir)
    damage: list[str] = []
    for manifest in manifests:
        try:
            hashes = _hashes(manifest)
            damaged = [name for name, digest in hashes.items() if file_hash(run_dir / name) != digest]
        except (OSError, ValueError) as error:
            damaged = [str(error)]
        if not damaged:
            if damage:
                message = f"{run_dir} has damaged checkpoints ({'; '.join(damage)}); going on from {manifest.stem}."
                warnings.warn(message, stacklevel=2)
            weights, state, *segments = (run_dir / name for name in hashes)
            content = read_torch(state)
            pool.restore(load_arrays(segment) for segment in segments)
            pool.labels = content.pop("labels")
            _drop_segments(run_dir, pool.n_steps)
            for passed_over in manifests[: manifests.index(manifest)]:
                passed_over.unlink()  # the hashes in it are not to be trusted
            return safetensors.torch.load_file(weights), content
        damage.append(f"{manifest.stem}: {', '.join(damaged)}")
    if damage:
        raise RunFolderError(
            f"every checkpoint of {run_dir} is damaged ({'; '.join(damage)}); start the run again in another folder."
        )
    if (run_dir / "metrics.csv").exists():
        raise RunFolderError(
            f"{run_dir} holds the tables of a run, but no checkpoint to go on from; choose another folder."
        )
    _drop_segments(run_dir, 0)
    return None


def load_student(run_dir: str | Path) -> MCDropoutDQN:
    """The student of a run as its last completed round left it, in evaluation mode: to watch it, or to go on with it.

    Raises RunFolderError if there is none yet, or its weights cannot be read.
    """
    manifests = {path.stem: path for path in _manifests(Path(run_dir))}  # published runs have none
    weights_files = (Path(run_dir) / "checkpoints").glob(f"{NUMBER}.safetensors")
    saved = sorted(path for path in weights_files if not manifests or path.stem in manifests)
    if not saved:
        raise RunFolderError(f"{run_dir} holds no student yet (checkpoints/*.safetensors); go on with its run.")
    newest = saved[-1]
    try:
        if manifests and file_hash(newest) != _hashes(manifests[newest.stem]).get(f"checkpoints/{newest.name}"):
            raise ValueError("it is not as it was written")
        weights = safetensors.torch.load_file(newest)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunFolderError(f"{newest} cannot be read ({error}); copy it again, or go on with its run.") from error
    student = MCDropoutDQN(len(weights["head.weight"]), dropout=read_config(run_dir)["dropout"])
    student.load_state_dict(weights)
    return student.eval()


def _manifests(run_dir: Path) -> list[Path]:
    """Of all complete checkpoints, the newest first."""
    return sorted((run_dir / "checkpoints").glob(f"{NUMBER}.json"), reverse=True)


def _hashes(manifest: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, by its path below the run folder. Raises ValueError if it is damaged."""
    hashes = json.loads(manifest.read_text())
    if not isinstance(hashes, dict) or not hashes:
        raise ValueError(f"{manifest.name} holds no hashes but {str(hashes)[:40]!r}")
    return hashes


def _save_pool(folder: Path, pool: FramePool) -> list[Path]:
    """Write the frames that have come since the last save; returns all segments that the pool still needs, in order."""
    oldest_needed = max(0, pool.n_steps - pool.n_rows)
    saved = sorted(path for path in folder.glob(_SEGMENTS) if _steps(path)[1] > oldest_needed)
    first_step = max(oldest_needed, _steps(saved[-1])[1] if saved else 0)
    n_steps = math.ceil(_STATES_PER_SEGMENT / pool.n_envs)
    for first in range(first_step, pool.n_steps, n_steps):
        last = min(first + n_steps, pool.n_steps)
        path = folder / f"{first:09d}-{last:09d}.zst"
        save_arrays(path, pool.segment(first, last))
        saved.append(path)
    return saved


def _hashes_of_segments(run_dir: Path) -> dict[str, str]:
    """The hashes that the manifests have of the pool's segments that there are."""
    known: dict[str, str] = {}
    for manifest in reversed(_manifests(run_dir)):
        with contextlib.suppress(ValueError):  # of a damaged one
            known |= _hashes(manifest)
    there = {path.relative_to(run_dir).as_posix() for path in (run_dir / "pool").glob(_SEGMENTS)}
    return {name: digest for name, digest in known.items() if name in there}


def _drop_segments(run_dir: Path, first_step: int) -> None:
    """Remove the frames from a step on: those of a round that was under way."""
    for path in (run_dir / "pool").glob(_SEGMENTS):
        if _steps(path)[0] >= first_step:
            path.unlink()


def _steps(segment: Path) -> tuple[int, int]:
    """The vector steps [first, last) that a segment's name gives."""
    first, last = segment.stem.split("-")
    return int(first), int(last)

"""Run folders: what lies in them, how it is written safely, and how it is read back as tidy DataFrames.

| file                        | holds                                                                            |
| --------------------------- | -------------------------------------------------------------------------------- |
| config.json                 | every setting                                                                    |
| environment.json            | versions, commit, processor, threads, precision, hashes; one entry per start      |
| metrics.csv                 | one row per round, columns as in `METRICS`                                        |
| evaluations.csv             | one row per evaluated game                                                       |
| selections/NNNNNN.parquet   | per round: queried and random states with scores, expert's Q-values and frames   |
| checkpoints/NNNNNN.*        | student (safetensors) and all else that the run needs to go on after round NNNNNN |
| pool/FIRST-LAST.zst         | frames of these steps, dropped when no longer in the pool                        |
| progress.json               | where the run stands, rewritten each round                                       |
| run.lock                    | held while a process works on the run                                            |
| GAME-probe-sets-*.zst       | probe sets, of an expert that is a module or lies where nothing may be written   |

Notebook 02, a batch, TensorBoard and publishing add:

| file                        | holds                                                                            |
| --------------------------- | -------------------------------------------------------------------------------- |
| curves.png, queried.gif     | what notebook 02 drew                                                            |
| notebook.ipynb              | the notebook as executed, with its error if it raised                            |
| cell.json                   | how the cell's last attempt ended, and with which settings                       |
| notebook.lock               | held while a worker of a batch executes the notebook                             |
| events.out.tfevents.*       | metrics.csv for TensorBoard, by `aamlib.tensorboard`                             |
| choices.csv                 | what each function would have asked about, by `aamlib.publish`                   |
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import operator
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from aamlib.config import ExperimentConfig, first_line
from aamlib.files import DATA_DIR, NUMBER, RunFolderError, check_kept, not_hidden, replacing
from aamlib.starts import HASHES, read_starts

# What metrics.csv records per round, with units.
METRICS = {
    "round": "number of the round; 0 is the warm-up",
    "agent_steps": "steps of all environments so far (4 emulator frames each)",
    "labels_used": "queries so far, a state asked about twice counting twice",
    "unique_labels": "different states among them",
    "pool_states": "states in the pool",
    "epsilon": "exploration at the end of the round",
    "loss": "cross-entropy from the expert's policy to the student's, summed over the round's queries, nats",
    "loss_per_label": "the same per query, nats",
    "query_agreement": "share with the same greedy action, by the student (dropout on) just before the gradient step",
    "score": "mean unclipped score of the evaluation's games; empty in rounds without one",
    "probe_expert_kl": "KL(expert || student) on states that the expert visits, mean, nats",
    "probe_expert_agreement": "share of those with the same greedy action",
    "probe_expert_regret": "the expert's best Q-value minus its Q-value of the student's action, mean",
    "probe_random_kl": "the same on states of random play",
    "probe_random_agreement": "the same on states of random play",
    "probe_random_regret": "the same on states of random play",
    "seconds_act": "wall time of collecting states",
    "seconds_score": "wall time of scoring the pool and choosing",
    "seconds_label": "wall time of the expert",
    "seconds_train": "wall time of the gradient steps",
    "seconds_diagnose": "wall time of probe sets and recorded selection",
    "seconds_evaluate": "wall time of the evaluation",
    "seconds_save": "wall time of writing the checkpoint of the round before",
    "memory_mb": "resident memory of the process at the round's end, MiB",
    "resumed": "1 in the first round after a resume, which starts new games",
}

# What evaluations.csv records per evaluated game.
EVALUATIONS = {
    "round": "round after which the evaluation was made",
    "agent_steps": "as in METRICS",
    "labels_used": "as in METRICS",
    "episode": "number of the game, from 0",
    "score": "unclipped score of the whole game",
}

COUNTERS = ("round", "agent_steps", "labels_used", "unique_labels")  # known in every round
_IDENTITY: dict[str, Any] = {"game": str, "acquisition": str, "query_fraction": int | float, "seed": int}
ENDED = ("finished", "label budget used")  # states of a run that has nothing left to do
MAY_RAISE = ("total_steps", "label_budget")  # settings with which a run goes on when they are higher than before


def differing_settings(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ.

    A run may go on on another device, and with its expert by another name or in another folder: these two are not
    compared. Whether the expert is the same, its weights tell (see `starts.check_hashes`).
    """
    names = sorted({*settings, *others} - {"device", "expert"})
    return [name for name in names if settings.get(name) != others.get(name)]


def check_settings(run_dir: Path, settings: Mapping[str, Any], may_raise: Sequence[str] = MAY_RAISE) -> None:
    """Raise RunFolderError, naming each setting that differs, if the folder was made with settings other than these.

    Those in `may_raise` may be higher than before; None is no limit. For others see `differing_settings`.
    """
    check_kept(run_dir, "config.json")
    if not (run_dir / "config.json").exists():
        return

    def raised(name: str) -> bool:
        limited = name in may_raise and name in settings and before.get(name) is not None
        return limited and (settings[name] is None or settings[name] > before[name])

    before = read_config(run_dir)
    differing = [
        f"{name} = {settings.get(name)!r} (the folder has {before.get(name)!r})"
        for name in differing_settings(settings, before)
        if not raised(name)
    ]
    if differing:
        free = " and ".join(name for name in may_raise if name in settings)
        raise RunFolderError(
            f"{run_dir} belongs to another configuration: {', '.join(differing)}; give the folder's own settings"
            f"{f' (only {free} may be raised)' if free else ''} or choose another folder."
        )


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The settings of a run. Raises RunFolderError if the folder holds no readable config.json."""
    path = Path(run_dir) / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{run_dir} is no run folder: config.json cannot be read ({error}); copy it again, or leave it out."
        ) from error
    if not isinstance(settings, dict):
        raise RunFolderError(
            f"{run_dir} is no run folder: config.json holds no settings but {str(settings)[:40]!r}; leave it out."
        )
    return settings


def check_experiment(run_dir: str | Path) -> dict[str, Any]:
    """The settings of a run. Raises RunFolderError unless they are those of an experiment, and can stand in a table."""
    settings = read_config(run_dir)
    unusable = [key for key, kind in _IDENTITY.items() if not isinstance(settings.get(key), kind)]
    taken = {*METRICS, *EVALUATIONS, "run"}  # columns beside which the settings stand
    unusable += [key for key, value in settings.items() if key in taken or str(value) == "nan"]
    if unusable:
        raise RunFolderError(
            f"{run_dir} was written by another version of aamlib, or is no experiment: config.json has no usable "
            f"{', '.join(unusable)}. Read it with the version that wrote it, or leave it out."
        )
    return settings


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, as `distill` returns it; or `Run("data/runs/mine")`, of one that is there."""

    dir: Path

    def __init__(self, dir: str | Path) -> None:
        object.__setattr__(self, "dir", Path(dir).expanduser())

    @property
    def config(self) -> dict[str, Any]:
        """Every setting."""
        return read_config(self.dir)

    @property
    def status(self) -> str:
        """Starting, running, finished, label budget used or interrupted, as last written; RunFolderError if none is."""
        path = self.dir / "progress.json"
        try:
            return json.loads(path.read_text())["status"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} cannot be read ({error!r}); go on with the run, which writes it.") from error

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per round, columns as in `METRICS`. Raises RunFolderError if it cannot be read."""
        table = read_table(self.dir / "metrics.csv", METRICS, filled=COUNTERS)
        if table.empty:
            raise RunFolderError(f"{self.dir} holds no round yet; go on with its run, or leave it out.")
        if (table["round"].diff() <= 0).any():
            raise RunFolderError(
                f"{self.dir}/metrics.csv has rounds twice or in disorder: it is damaged. Copy the run "
                "folder again, go on with its run, which writes the file anew, or leave it out."
            )
        return table

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row per evaluated game, columns as in `EVALUATIONS`. Raises RunFolderError if it cannot be read."""
        return read_table(self.dir / "evaluations.csv", EVALUATIONS, filled=EVALUATIONS)

    @property
    def recorded(self) -> list[int]:
        """The rounds whose selection is recorded."""
        return sorted(int(path.stem) for path in (self.dir / "selections").glob(f"{NUMBER}.parquet"))

    def selection(self, number: int) -> pd.DataFrame:
        """The recorded states of a round, one row each.

        Columns: kind ("queried" or "random"), state_id, one `score_...` per acquisition function (float, its unit),
        expert_q (A Q-values), student_action (the best by its mean Q-value over the T passes), and for the first
        `recorded_stacks` of each kind frames (uint8 (4, 84, 84)) and q_samples (float32 (T, A)); None for the rest.
        Raises RunFolderError if the round recorded none, or it cannot be read.
        """
        path = self.dir / "selections" / f"{number:0>6}.parquet"  # what is no whole number has no file, either
        if not path.exists():
            more = ", ..." if len(self.recorded) > 20 else ""
            known = f"those of {', '.join(map(str, self.recorded[:20]))}{more}" if self.recorded else "none"
            raise RunFolderError(f"{self.dir} has no selection of round {number}; it has {known}.")
        try:
            table = pd.read_parquet(path)
            n_actions = len(table["expert_q"].iloc[0])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _unreadable(path, error) from error
        table["frames"] = table["frames"].map(
            lambda frames: np.frombuffer(frames, np.uint8).reshape(4, 84, 84), na_action="ignore"
        )
        table["q_samples"] = table["q_samples"].map(
            lambda q: np.asarray(q, np.float32).reshape(-1, n_actions), na_action="ignore"
        )
        return table


def count_recorded(selection: Path) -> int:
    """The states in a selection's file, queried and random. Raises RunFolderError if it cannot be read."""
    try:
        return pq.read_metadata(selection).num_rows
    except (OSError, ValueError) as error:
        raise _unreadable(selection, error) from error


def _unreadable(selection: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{selection} cannot be read ({error}); copy it again, or remove it.")


def load_runs(root: str | Path, *more: str | Path) -> pd.DataFrame:
    """Metrics of every run folder below `root` (or of `root` itself, and of `more`): one row per run and round.

    Columns: run (path below a single root, else as given), all settings, the `starts.HASHES` of its first start, then
    `METRICS`. Raises RunFolderError if there is no run, or if a folder is damaged or of another version.
    """
    table = _load([root, *more], "metrics")
    settings = [str(name) for name in table if name not in METRICS and name != "run"]
    return table[["run", *settings, *METRICS]]


def load_evaluations(root: str | Path, *more: str | Path) -> pd.DataFrame:
    """Evaluated games of every run folder below `root`, as `load_runs` finds them: one row per run and game.

    Columns: `EVALUATIONS`, run, then all settings and hashes. Raises RunFolderError as `load_runs` does.
    """
    return _load([root, *more], "evaluations")


def _load(roots: list[str | Path], table: str) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    for name, run_dir in find_runs(*roots).items():
        settings = dict.fromkeys(ExperimentConfig.names()) | check_experiment(run_dir)
        first_start = next(iter(read_starts(run_dir)), {})
        settings |= {name: first_start.get(name) for name in HASHES}
        scalars = {
            key: value if value is None or isinstance(value, str | int | float) else str(value)
            for key, value in settings.items()
        }
        tables.append(getattr(Run(run_dir), table).assign(run=name, **scalars))
    return pd.concat(tables, ignore_index=True)


def load_starts(root: str | Path, *more: str | Path) -> pd.DataFrame:
    """The `read_starts` of every run folder below `root`, as `load_runs` finds them: one row per run and start."""
    runs = find_runs(root, *more).items()
    return pd.concat([pd.DataFrame(read_starts(folder)).assign(run=name) for name, folder in runs])


def find_runs(*roots: str | Path) -> dict[str, Path]:
    """Run folders by name: the path below a single root, else as given; each once, in however many roots it lies.

    Raises RunFolderError if a root has none.
    """
    runs: dict[Path, tuple[str, Path]] = {}
    for root in (Path(root).expanduser() for root in roots):
        found = sorted(path.parent for path in not_hidden(root, "metrics.csv"))
        if not found:
            what = f"no runs below {root}" if root.is_dir() else f"no folder {root}"
            raise RunFolderError(f"{what}; give a folder that holds run folders (with metrics.csv in each).")
        for run_dir in found:
            below = run_dir.relative_to(root).as_posix() if run_dir != root else root.absolute().name
            runs.setdefault(run_dir.resolve(), (below if len(roots) == 1 else str(run_dir), run_dir))
    return dict(runs.values())


def recorded_runs(roots: str | Path | Sequence[str | Path] | None = None) -> dict[str, Run]:
    """Runs with recorded selections in or below the folders, by name: the folder's, with those above if two are alike.

    None: the sample runs, the published ones in data/results/, and those in data/runs/. Warns of a run whose settings
    cannot be read, and leaves it out. Raises RunFolderError if a folder is not there, or there is no run.
    """
    if roots is None:
        above = [DATA_DIR / name for name in ("sample", "results", "runs")]
    else:
        above = [Path(root).expanduser() for root in ([roots] if isinstance(roots, str | Path) else roots)]
        if absent := [str(root) for root in above if not root.is_dir()]:
            raise RunFolderError(f"no folder {' and no '.join(absent)}; give folders that hold run folders.")
    selection = f"selections/{NUMBER}.parquet"
    folders = {path.parent.parent.absolute() for root in above for path in not_hidden(root, selection)}
    for folder in list(folders):
        try:
            check_experiment(folder)
        except RunFolderError as error:
            warnings.warn(f"not shown: {error}", stacklevel=2)
            folders.remove(folder)
    if not folders:
        raise RunFolderError(
            f"no run with recorded selections below {' or '.join(map(str, above))}; give a folder that holds run "
            "folders (with selections/ in each)."
        )
    named: dict[str, Run] = {}
    by_name = operator.attrgetter("name")
    for _, alike in itertools.groupby(sorted(folders, key=by_name), by_name):
        first, *others = alike
        shared = Path(os.path.commonpath([folder.parent for folder in (first, *others)]))
        named |= {folder.relative_to(shared).as_posix(): Run(folder) for folder in (first, *others)}
    return dict(sorted(named.items()))


def read_table(path: Path, columns: Collection[str], filled: Collection[str]) -> pd.DataFrame:
    """A table with the given columns of numbers, some of them filled in every row. Raises RunFolderError otherwise."""
    advice = "Copy the run folder again, go on with its run, which writes the file anew, or leave it out."
    try:
        content = path.read_bytes()
        table = pd.read_csv(io.BytesIO(content))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({first_line(error)}). {advice}") from error
    if absent := [name for name in columns if name not in table]:
        raise RunFolderError(
            f"{path} has no column {', '.join(absent)}: it was written by another version of aamlib, or is damaged. "
            "Read it with the version that wrote it, or leave the run out."
        )
    table = table.astype(float) if table.empty else table
    if (wrong := [name for name in columns if table[name].dtype.kind not in "if"]) or not content.endswith(b"\n"):
        what = f"holds something other than numbers in {', '.join(wrong)}" if wrong else "ends in the middle of a line"
        raise RunFolderError(f"{path} {what}: it is damaged, or was copied by half. {advice}")
    if empty := [name for name in filled if not np.isfinite(table[name]).all()]:
        raise RunFolderError(f"{path} has rows without {', '.join(empty)}: it is damaged. {advice}")
    return table


def write_selection(run_dir: Path, number: int, table: pd.DataFrame) -> None:
    """Write a round's recorded states; see `Run.selection`. Frames of neighbouring states compress well together."""
    folder = run_dir / "selections"
    folder.mkdir(exist_ok=True)
    scores = [name for name in table.columns.astype(str) if name.startswith("score_")]
    with replacing(folder / f"{number:06d}.parquet") as temporary:
        table.to_parquet(
            temporary,
            index=False,
            compression="zstd",
            compression_level=9,
            data_page_size=64 * 2**20,  # one page: zstd sees all stacks at once
            use_dictionary=["kind"],
            use_byte_stream_split=[*scores, "expert_q.list.element"],
        )

"""Batches: every cell is done once, whatever is killed on the way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from synthetic import write_run

import aamlib
from aamlib import batch, files, workers
from aamlib.batch import run_batch
from aamlib.files import lock_run, write_json
from aamlib.grids import plan
from aamlib.workers import Outcome, is_done, read_progress, run_cell

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# Stands in for the experiment's notebook: four rounds that are resumed, under the lock, in a second. Each name of an
# acquisition function does its own mischief; `events` records what happened in the folder.
STAND_IN = """
import fcntl, json, os, signal, time
from pathlib import Path

folder = Path(run_dir)
lock = (folder / "run.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

def events(kind):
    path = folder / "events"
    return [int(n) for k, n in map(str.split, path.read_text().splitlines()) if k == kind] if path.exists() else []

def record(kind, number):
    with (folder / "events").open("a") as file:
        file.write(f"{kind} {number}\\n")

def report(status, number):
    temporary = folder / f"progress.{os.getpid()}"
    progress = {"status": status, "round": number, "agent_steps": 100 * number, "score": number / 2,
                "score_agent_steps": 100 * number}
    temporary.write_text(json.dumps(progress))
    temporary.replace(folder / "progress.json")

first = not events("start")
record("start", os.getpid())
record("threads", os.environ["OMP_NUM_THREADS"])
for number in range(len(events("round")) + 1, 5):
    if acquisition == "entropy" and (first or seed):
        os.kill(os.getpid(), signal.SIGKILL)
    if acquisition == "variation_ratio":
        raise ValueError("an error of the notebook's own")
    if acquisition == "random" and number == 3 and first:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    time.sleep(pause)
    record("round", number)
    report("running", number)
report("finished", 4)
"""

SMALL = {"total_steps": 800, "warmup_steps": 160, "round_steps": 160, "pool_size": 320}


@pytest.fixture
def cells(tmp_path):
    """Cells of a grid whose notebook is the stand-in."""

    def make(seeds=1, pause=0.0, **values):
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        parameters = "\n".join(f"{name} = None" for name in ("run_dir", "preset", "seed", "acquisition", *SMALL))
        notebook.cells = [
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f"pause = {pause}\n{STAND_IN}"),
        ]
        nbformat.write(notebook, tmp_path / "stand_in.ipynb")
        grid = {"seeds": list(range(seeds)), "constants": SMALL, "values": values}
        return plan(grid, tmp_path / "out", tmp_path / "stand_in.ipynb")

    return make


def events(cell, kind):
    lines = (cell.run_dir / "events").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(kind)]


def assert_done_once(cell):
    assert is_done(cell)
    assert events(cell, "round") == [1, 2, 3, 4], "every round once, none lost"
    assert json.loads((cell.run_dir / "progress.json").read_text())["status"] == "finished"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_cells_are_refused(tmp_path):
    with pytest.raises(aamlib.ConfigError, match="there are no cells; give at least one"):
        run_batch([], tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": "two"}, "threads = 'two' is of type str; give int or None"),
        ({"threads": 0}, "threads = 0 is out of range; give a value at least 1"),
        ({"side_by_side": 1.5}, r"side_by_side = 1\.5 is of type float"),
        ({"retries": None}, "retries = None is of type NoneType; give int"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_before_anything_starts(as_users, cells, tmp_path, given, message):
    with pytest.raises(aamlib.ConfigError, match=message):
        run_batch(cells(), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_cells_are_run_where_they_were_planned(cells, tmp_path):
    with pytest.raises(aamlib.ConfigError, match="was planned in .*out, not in .*elsewhere"):
        run_batch(cells(), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_killed_kernels_resume_errors_are_named_and_done_cells_are_skipped(cells, tmp_path, capsys):
    grid = cells(seeds=2, acquisition=["bald", "entropy", "variation_ratio"])
    grid = [cell for cell in grid if cell.config.seed == 0 or cell.config.acquisition == "entropy"]
    summary = run_batch(grid, tmp_path / "out", side_by_side=3, threads=1, retries=1)
    states = summary["state"].to_dict()
    assert states == {cell.name: "done" for cell in grid} | {
        "variation_ratio-seed=0": "failed",
        "entropy-seed=1": "failed",
    }
    assert summary.loc["bald-seed=0", ["rounds", "score", "attempts"]].tolist() == [4, 2.0, 1]
    assert summary.loc["entropy-seed=0", "attempts"] == 2, "killed once"
    assert summary.loc["entropy-seed=1", "attempts"] == 2, "killed each time: the retries are bounded"
    assert "its kernel died; lost 2 times without completing a round" in summary.loc["entropy-seed=1", "error"]
    assert summary.loc["variation_ratio-seed=0", "error"] == "ValueError: an error of the notebook's own"
    (raised,) = (cell for cell in grid if cell.name == "variation_ratio-seed=0")
    saved = (raised.run_dir / "notebook.ipynb").read_text()
    assert "an error of the notebook's own" in saved
    for cell in grid:
        assert set(events(cell, "threads")) == {1}
        if states[cell.name] == "done":
            assert_done_once(cell)
    assert "entropy-seed=0: its kernel died; it goes on after round 0" in capsys.readouterr().out

    again = run_batch(grid, tmp_path / "out", side_by_side=3, retries=0)
    assert again["attempts"].to_dict() == {name: int(state == "failed") for name, state in states.items()}
    assert again["state"].to_dict() == states


@pytest.mark.parametrize(
    ("reached", "retries"), [([0, 0, 0], 2), ([5, 5, 5, 5], 2), ([0, 0, 3, 3, 3, 3], 2), ([2, 4, 4], 0)]
)
def test_an_attempt_that_completes_a_round_costs_no_retry(cells, tmp_path, monkeypatch, reached, retries):
    rounds = iter(reached)  # at the end of each attempt

    def execute(cell, threads, _batch):
        write_json(cell.run_dir / "progress.json", {"status": "running", "round": next(rounds)})
        return Outcome("lost", "its kernel died")

    monkeypatch.setattr(workers, "_execute", execute)
    summary = run_batch(cells(acquisition=["bald"]), tmp_path / "out", retries=retries)
    assert summary["attempts"].item() == len(reached)
    assert summary["error"].item() == f"its kernel died; lost {retries + 1} times without completing a round"


def test_where_temporary_paths_are_too_long_for_sockets_kernels_start_too(cells, tmp_path, monkeypatch):
    (long := tmp_path / (80 * "t")).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert run_batch(cells(acquisition=["bald"]), tmp_path / "out")["state"].tolist() == ["done"]


@pytest.mark.parametrize("mark", ["null", "[]", "3", "{"])
def test_a_damaged_mark_is_not_done(cells, mark):
    cell = cells()[0]
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "cell.json").write_text(mark)
    assert not workers.is_done(cell)


def test_a_done_cell_is_done_on_another_device_and_with_its_expert_in_another_place_but_not_with_other_settings(cells):
    cell = cells()[0]
    mark = {"state": "done", "settings": cell.config.asdict() | {"device": "cuda", "expert": "/elsewhere/pong"}}
    files.write_json(files.make_folder(cell.run_dir) / "cell.json", mark)
    assert is_done(cell)
    mark["settings"]["batch_size"] += 1
    files.write_json(cell.run_dir / "cell.json", mark)
    assert not is_done(cell)


def test_a_device_is_wanted_where_the_cells_run(cells, tmp_path):
    with pytest.raises(aamlib.ConfigError, match="device 'cuda:99' cannot be used here"):
        run_batch(cells(device=["cuda:99"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_ended_before_its_notebook_failed_stays_finished(cells):
    (cell,) = cells(acquisition=["bald"])
    notebook = nbformat.read(cell.notebook, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("raise ValueError('no room for a figure')"))
    nbformat.write(notebook, cell.notebook)
    assert run_cell(cell, threads=1) == Outcome("failed", "ValueError: no room for a figure")
    assert read_progress(cell.run_dir)["status"] == "finished"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("expert_sha256", "an expert with other weights"),
        ("acquisition_sha256", "an acquisition function of other source"),
    ],
)
def test_done_cells_by_another_expert_or_function_are_not_taken_for_these(cells, tmp_path, name, what):
    grid = cells(acquisition=["bald"])
    assert run_batch(grid, tmp_path / "out")["state"].tolist() == ["done"]
    files.write_json(grid[0].run_dir / "environment.json", [{name: "f" * 64}])
    with pytest.raises(aamlib.RunFolderError, match=f"was begun with {what}"):
        run_batch(grid, tmp_path / "out")
    both = cells(acquisition=["bald", "random"])
    files.write_json(files.make_folder(both[1].run_dir) / "environment.json", [{name: "f" * 64}])
    with pytest.raises(aamlib.RunFolderError, match=rf"was begun with {what}.* Nor can {both[1].name} go on\."):
        run_batch(both, tmp_path / "out")
    (grid[0].run_dir / "environment.json").unlink()
    assert run_batch(grid, tmp_path / "out")["state"].tolist() == ["done"]


@pytest.mark.parametrize(("before", "after"), [("finished", "finished"), ("running", "interrupted")])
def test_a_run_that_could_not_be_touched_is_what_it_was(cells, monkeypatch, before, after):
    (cell,) = cells(acquisition=["bald"])
    files.write_json(files.make_folder(cell.run_dir) / "progress.json", {"status": before, "round": 4})

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    assert run_cell(cell, threads=1) == Outcome("lost", "OSError: no space left")
    assert (read_progress(cell.run_dir)["status"], read_progress(cell.run_dir)["round"]) == (after, 4)


def test_ctrl_c_ends_the_kernels_and_leaves_folders_that_go_on(cells, tmp_path):
    grid = cells(seeds=3, pause=0.5, acquisition=["bald"])
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which background jobs of a shell ignore
        "from aamlib import batch, grids\n"
        f"cells = grids.plan({ {'seeds': [0, 1, 2], 'constants': SMALL, 'values': {'acquisition': ['bald']}} }, "
        f"{str(tmp_path / 'out')!r}, {str(tmp_path / 'stand_in.ipynb')!r})\n"
        f"print(batch.run_batch(cells, {str(tmp_path / 'out')!r}, side_by_side=2)['state'].tolist())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    while not all((cell.run_dir / "events").exists() and events(cell, "round") for cell in grid[:2]):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert "The same call goes on with 3 cells" in output
    assert "['interrupted', 'interrupted', 'interrupted']" in output
    for cell in grid[:2]:
        assert not any(alive(pid) for pid in events(cell, "start"))
        assert json.loads((cell.run_dir / "progress.json").read_text())["status"] == "interrupted"
    assert not grid[2].run_dir.exists(), "no cell starts after Ctrl-C"
    assert set(run_batch(grid, tmp_path / "out", side_by_side=2)["state"]) == {"done"}
    for cell in grid:
        assert_done_once(cell)


def test_stopped_a_batch_ends_its_own_kernels_alone(monkeypatch):
    class Kernel:
        killed = False

        def kill(self):
            self.killed = True

    mine, others = Kernel(), Kernel()
    running = {("mine", Path("a")): mine, ("mine", Path("b")): None, ("others", Path("a")): others}
    monkeypatch.setattr(workers, "_active", running)
    assert workers.kill_kernels("mine") == 2, "one of them has no kernel yet"
    assert mine.killed
    assert not others.killed


def test_a_folder_in_use_or_of_other_settings_is_left_alone(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "LOCK_SECONDS", 0.1)
    (cell,) = cells(acquisition=["bald"])
    with lock_run(cell.run_dir):
        summary = run_batch([cell], tmp_path / "out", retries=1)
    assert summary["state"].tolist() == ["failed"]
    assert "is in use by another process" in summary["error"].item()
    assert not (cell.run_dir / "notebook.ipynb").exists()
    settings = cell.config.asdict() | {"dropout": 0.5}
    (cell.run_dir / "config.json").write_text(json.dumps(settings))
    with pytest.raises(aamlib.RunFolderError, match=r"another configuration: dropout = 0\.3 \(the folder has 0\.5\)"):
        run_batch([cell], tmp_path / "out")
    with pytest.raises(aamlib.ConfigError, match="side_by_side = 0 is out of range; give a value at least 1"):
        run_batch([cell], tmp_path / "out", side_by_side=0)


def test_the_fastest_layout_is_measured_if_wished(cells, tmp_path, monkeypatch, capsys):
    def measure(folder, **settings):
        assert settings.items() >= {"game": "pong", "acquisition": "bald", "query_fraction": 0.1}.items()
        rows = [(4, 1, 9.0, 1600.0), (2, 3, 4.0, 1800.0), (1, 6, 2.2, 1636.0)]
        return pd.DataFrame(rows, columns=["side_by_side", "threads", "seconds_per_round", "rounds_per_hour"])

    monkeypatch.setattr(batch, "measure_layouts", measure)
    two = cells(seeds=2, acquisition=["bald"])
    with pytest.raises(aamlib.ConfigError, match="measure_first chooses side_by_side and threads"):
        run_batch(two, tmp_path / "out", measure_first=True, threads=2)
    assert run_batch(two, tmp_path / "out", measure_first=True)["state"].tolist() == ["done", "done"]
    assert [events(cell, "threads") for cell in two] == [[3], [3]]
    assert "Cells run 2 side by side, 3 threads each." in capsys.readouterr().out
    shutil.rmtree(two[0].run_dir)
    run_batch(two, tmp_path / "out", measure_first=True)
    assert events(two[0], "threads") == [6], "one alone gains from all threads"
    capsys.readouterr()
    run_batch(two, tmp_path / "out", measure_first=True)
    assert "side by side" not in capsys.readouterr().out, "a batch that is done is not measured"


def test_layouts_are_compared_by_the_rounds_of_all_runs_together(tmp_path, monkeypatch):
    """Here a second thread halves the time of a round, so that one run with both does as much as two runs."""

    def execute(cell, threads, _batch):
        run_dir = write_run(cell.run_dir / "run", rounds=2, seed=cell.config.seed)
        metrics = aamlib.Run(run_dir).metrics
        phases = dict.fromkeys(metrics.filter(like="seconds_"), 1.0 / threads) | {"seconds_evaluate": 1e6}
        metrics.assign(**phases).to_csv(run_dir / "metrics.csv", index=False)
        return Outcome("done")

    monkeypatch.setattr(workers, "_execute", execute)
    table = batch.measure_layouts(tmp_path, [(2, 1), (1, 2)])
    assert table.to_numpy().tolist() == [[2, 1, 6.0, 1200.0], [1, 2, 3.0, 1200.0]]


def test_a_layout_that_cannot_be_measured_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_execute", lambda cell, *_: Outcome("failed", "in use by another"))
    with pytest.raises(aamlib.RunFolderError, match="1 runs with 1 threads could not be measured: in use by another"):
        batch.measure_layouts(tmp_path / "busy", [(1, 1)])
    with pytest.raises(aamlib.RunFolderError, match="1x1 is there, .* give another folder"):
        batch.measure_layouts(tmp_path / "busy", [(1, 1)])


def test_a_measurement_that_is_stopped_is_no_error(tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers._Threads, "wait", stopped)
    monkeypatch.setattr(workers, "_execute", lambda cell, *_: Outcome("done"))
    (tmp_path / "grid.toml").write_text("seeds = [0, 1]")
    assert batch.main([str(tmp_path / "grid.toml"), str(tmp_path / "out"), "--measure-first"]) == 130
    assert "Stopped; the same call goes on." in capsys.readouterr().err


@pytest.fixture
def executed(monkeypatch):
    """The cells that have been executed, each by nothing in a tenth of a second."""
    cells = []

    def execute(cell, threads, _batch):
        cells.append(cell)
        time.sleep(0.1)
        return Outcome("done")

    monkeypatch.setattr(workers, "_execute", execute)
    return cells


def test_an_error_of_the_batch_itself_is_seen_before_other_cells_are_run(tmp_path, monkeypatch, executed):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch.BatchView, "say", disk_full)
    with pytest.raises(OSError, match="No space left"):
        run_batch({"seeds": list(range(50)), "constants": {"total_steps": 60_000}}, tmp_path / "out", side_by_side=1)
    assert len(executed) < 50


def test_a_second_ctrl_c_starts_no_cell_either(tmp_path, monkeypatch, executed):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    stop = workers._Threads.stop
    stops = iter([pressed, stop])
    monkeypatch.setattr(workers._Threads, "wait", pressed)
    monkeypatch.setattr(workers._Threads, "stop", lambda pool: next(stops)(pool))
    with pytest.raises(KeyboardInterrupt):
        run_batch({"seeds": list(range(50)), "constants": {"total_steps": 60_000}}, tmp_path / "out", side_by_side=1)
    assert len(executed) < 50


def test_all_processors_are_used_in_each_layout_that_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_processors", lambda: 6)
    monkeypatch.setattr(workers, "_execute", lambda cell, *_: write_run(cell.run_dir / "run") and Outcome("done"))
    table = batch.measure_layouts(tmp_path)
    assert table[["side_by_side", "threads"]].to_numpy().tolist() == [[6, 1], [3, 2], [2, 3], [1, 6]]


def test_a_process_that_was_paused_shows_again_how_far_it_is(cells, monkeypatch):
    view = batch.BatchView(cells(), None)
    clock = iter([0.0, 5000.0, 5000.0, 5061.0, 5061.0, 5061.0])  # paused while it read the folders
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    view.update({})
    assert view.next <= 5060


def test_the_experiments_notebook_and_raised_horizons(tiny, tmp_path):
    """The real notebook: a finished cell with more steps to do goes on, and is then done again."""
    constants = {name: value for name, value in tiny.asdict().items() if value is not None and name != "seed"}
    out = tmp_path / "out"
    for steps in (320, 480):
        grid = {"seeds": [3], "constants": constants | {"total_steps": steps}}
        summary = run_batch(grid, out)
        assert summary["state"].tolist() == ["done"]
        assert summary["agent_steps"].tolist() == [steps]
    run = aamlib.Run(out / "seed=3")
    assert run.metrics["round"].tolist() == [0, 1, 2]
    assert run.config["seed"] == 3
    assert (run.dir / "curves.png").exists()


def test_the_batch_notebook(tiny, tmp_path):
    constants = {name: value for name, value in tiny.asdict().items() if value is not None and name != "seed"}
    grid = {"seeds": [0], "constants": constants | {"total_steps": 320}}
    notebook = papermill.execute_notebook(
        Path(__file__).parents[1] / "notebooks" / "03_run_batch.ipynb",
        tmp_path / "batch.ipynb",
        {"grid": grid, "out": str(tmp_path / "out")},
        kernel_name="python3",
        progress_bar=False,
    )
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "1 cells, about" in text
    assert "1 done" in text
    tables = [
        o.data["text/plain"] for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "display_data"
    ]
    assert len(tables) == 1
    assert "seed=0  done  1 of 1" in tables[0], "the table of scores, as it stood at the end"
    assert aamlib.Run(tmp_path / "out" / "seed=0").status == "finished"


def test_the_command_line(tmp_path, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text('seeds = [0, 1]\npreset = "quick"')
    assert batch.main([str(grid), str(tmp_path / "out"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "seed=1" in output
    assert "2 cells, about" in output
    assert not (tmp_path / "out").exists()
    assert batch.main([str(tmp_path / "none.toml"), str(tmp_path / "out")]) == 2
    assert "cannot read the grid" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        batch.main([str(grid), str(tmp_path / "out"), "--measured", str(tmp_path)])
    assert "--measured is for the estimates of a --dry-run" in capsys.readouterr().err


def test_of_a_stopped_batch_the_bar_shows_what_is_done(cells):
    grid = cells(seeds=2, acquisition=["bald"])
    with batch.BatchView(grid, None) as view:
        view.update({grid[0].name: "failed", grid[1].name: "interrupted"}, last=True)
        assert view.bar.n == grid[0].config.n_rounds


def test_a_log_is_not_filled_with_bars(cells, capsys):
    grid = cells(seeds=2, acquisition=["bald"])
    with batch.BatchView(grid, None) as view:
        for state in ("running", "failed"):
            view.next = 0.0  # as if time had passed
            view.update({grid[0].name: state})
    bars = capsys.readouterr().err.strip().split("\r")
    assert len(bars) == 2, "one at the start and one at the end"
    assert "1 failed" in bars[-1]


# On Dask


@pytest.fixture
def cluster():
    """Starts schedulers and workers as processes of their own, and ends them."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


with socket.socket() as free:  # other tests may run on the same machine
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
ADDRESS = f"tcp://127.0.0.1:{PORT}"


def start_scheduler(cluster):
    return cluster("dask_scheduler", "--host", "127.0.0.1", "--port", str(PORT), "--no-dashboard", "--no-show")


def start_worker(cluster, tmp_path):
    folder = str(tmp_path / "dask")
    return cluster("dask_worker", ADDRESS, "--nworkers", "2", "--nthreads", "1", "--local-directory", folder)


def wait_for_scheduler():
    import distributed

    for _ in range(100):
        try:
            return distributed.Client(ADDRESS, timeout=5).close()
        except OSError:
            time.sleep(0.5)
    pytest.fail("the scheduler did not start")


def test_a_killed_worker_and_a_restarted_scheduler_lose_nothing(cells, tmp_path, cluster):
    """The "random" cells kill their worker in mid-cell; then the scheduler and all workers are killed."""
    grid = cells(seeds=2, pause=0.5, acquisition=["random", "bald", "variation_ratio"])
    scheduler, worker = start_scheduler(cluster), start_worker(cluster, tmp_path)
    wait_for_scheduler()
    ended = []
    original = workers._Dask.wait

    def wait(pool, seconds):
        if result := original(pool, seconds):
            ended.append(result)
            if len(ended) == 2:
                for process in (scheduler, worker):
                    process.kill()
                    process.wait()
                start_scheduler(cluster)
                start_worker(cluster, tmp_path)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers._Dask, "wait", wait)
        summary = run_batch(grid, tmp_path / "out", scheduler=ADDRESS, threads=1)
    assert len(ended) == 6
    for cell in grid:
        if "variation_ratio" in cell.name:
            assert summary.loc[cell.name, "state"] == "failed"
        else:
            assert summary.loc[cell.name, "state"] == "done"
            assert_done_once(cell)
        if "random" in cell.name:
            assert len(events(cell, "start")) >= 2
    assert run_batch(grid, tmp_path / "out", scheduler=ADDRESS)["attempts"].sum() == 2, "the failed ones, once more"
    assert {events(cell, "threads")[-1] for cell in grid} == {1}
    with pytest.raises(aamlib.ConfigError, match="leave side_by_side out"):
        run_batch(grid, tmp_path / "out", scheduler=ADDRESS, side_by_side=2)


def test_a_scheduler_that_does_not_answer_is_said(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    with pytest.raises(aamlib.ConfigError, match="no Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run_batch(cells(acquisition=["bald"]), tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "out").exists()


def test_two_thousand_cells_on_two_hundred_simulated_workers(tmp_path, monkeypatch, capsys):
    """Everything but the notebooks: folders, locks, marks, Dask and the progress view."""
    from distributed import LocalCluster

    monkeypatch.setattr(workers, "_execute", lambda cell, *_: Outcome("done"))
    n = 2_000
    cells = plan({"seeds": list(range(n)), "preset": "quick"}, tmp_path / "out")
    with LocalCluster(
        n_workers=4, threads_per_worker=50, processes=False, dashboard_address=None, scheduler_port=0
    ) as cluster:
        start = time.monotonic()
        summary = run_batch(cells, tmp_path / "out", scheduler=cluster.scheduler_address)
        seconds = time.monotonic() - start
    assert summary["state"].eq("done").all()
    assert summary["attempts"].eq(1).all()
    assert len(list((tmp_path / "out").glob("*/cell.json"))) == n
    with capsys.disabled():
        print(f"\n{n} cells on 200 simulated workers: {1000 * seconds / n:.1f} ms of overhead a cell")
    assert seconds / n < 0.05, "seconds a cell; even if this grew with their number, 10,000 would cost 0.25 s each"

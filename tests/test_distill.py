"""The loop: exact repetition, survival, budgets, and what each round records."""

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from filelock import SoftFileLock

import aamlib
from aamlib import checkpoints
from aamlib.atari import _Emulators, env_seeds
from aamlib.distill import Distillation
from aamlib.replay import FramePool
from aamlib.selections import rounds_of
from aamlib.starts import read_starts

loop = sys.modules["aamlib.distill"]  # whose name in the package is the function's

pytestmark = pytest.mark.slow


def learned(run):
    """Everything in the metrics but the clock."""
    return run.metrics.drop(columns=[name for name in run.metrics if name.startswith(("seconds_", "memory"))])


def assert_every_round_once(run, config, rounds=4):
    metrics = run.metrics
    assert metrics["round"].tolist() == list(range(rounds + 1))
    steps = config.warmup_steps + config.round_steps * np.arange(rounds + 1)
    assert metrics["agent_steps"].tolist() == steps.tolist()
    queries = [0] + [config.query_size(min(config.pool_size, n)) for n in steps[1:]]
    assert metrics["labels_used"].tolist() == np.cumsum(queries).tolist()


def test_same_seed_same_run_and_another_seed_another(finished, with_settings, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = aamlib.distill(with_settings(), tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    pd.testing.assert_frame_equal(learned(finished), learned(again), check_exact=True)
    pd.testing.assert_frame_equal(finished.evaluations, again.evaluations, check_exact=True)
    pd.testing.assert_frame_equal(finished.selection(3), again.selection(3), check_exact=True)
    other = aamlib.distill(with_settings(seed=1), tmp_path / "other")
    assert (other.metrics["loss"].dropna() != finished.metrics["loss"].dropna()).all()


def test_a_run_records_what_it_did(finished, tiny):
    assert finished.status == "finished"
    assert_every_round_once(finished, tiny)
    metrics = finished.metrics
    assert (metrics["unique_labels"] <= metrics["labels_used"]).all()
    assert metrics["unique_labels"].is_monotonic_increasing
    assert metrics["loss"].iloc[1:].tolist() == pytest.approx(
        (metrics["loss_per_label"] * metrics["labels_used"].diff()).iloc[1:].tolist()
    )
    assert finished.evaluations.groupby("agent_steps")["episode"].apply(list).to_dict() == {
        480: [0, 1],
        800: [0, 1],
    }
    scored = metrics.dropna(subset=["score"]).set_index("agent_steps")["score"]
    assert scored.to_dict() == finished.evaluations.groupby("agent_steps")["score"].mean().to_dict()
    assert metrics["epsilon"].tolist() == [tiny.epsilon(steps) for steps in metrics["agent_steps"]]
    assert metrics["pool_states"].tolist() == [160, 320, 320, 320, 320]
    assert (metrics["memory_mb"] > 100).all()
    seconds = metrics.filter(like="seconds_").iloc[1:]
    assert (seconds > 0).all(axis=None)
    assert seconds["seconds_evaluate"].nlargest(2).index.tolist() in ([2, 4], [4, 2]), "after 480 and 800 steps"


def test_the_seed_decides_about_weights_and_games(with_settings, tmp_path):
    def begin(name, seed):
        (tmp_path / name).mkdir()
        run = Distillation(with_settings(seed=seed), tmp_path / name)
        run.open()
        return run

    first, again, other = begin("first", 0), begin("again", 0), begin("other", 1)
    for name, weights in first.student.named_parameters():
        assert torch.equal(again.student.get_parameter(name), weights)
        assert weights.dim() == 1 or not torch.equal(other.student.get_parameter(name), weights)
    np.testing.assert_array_equal(again.states, first.states)
    assert not np.array_equal(other.states, first.states)


def test_exploration_falls_as_configured(with_settings, tmp_path, monkeypatch):
    config, explored, greedy = with_settings(total_steps=480), [], loop.epsilon_greedy
    monkeypatch.setattr(loop, "epsilon_greedy", lambda q, share, of: explored.append(share) or greedy(q, share, of))
    aamlib.distill(config, tmp_path)
    assert explored == [config.epsilon(steps) for steps in range(0, 480, 4)]
    assert len(set(explored)) == 41, "1 in the warm-up, then falling at every step, then at rest"


@pytest.mark.parametrize("dropout", [True, False])
def test_evaluations_are_as_configured_and_never_twice_of_the_same_games(with_settings, tmp_path, monkeypatch, dropout):
    config = with_settings(evaluation_dropout=dropout, evaluation_epsilon=0.25, evaluate_every=160, total_steps=640)
    states, calls = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8), []

    def evaluate(policy, *arguments, **settings):
        calls.append((not torch.equal(policy(states), policy(states)), *arguments, settings))
        return np.array([3.0, 4.0])

    monkeypatch.setattr(loop, "evaluate", evaluate)
    run = aamlib.distill(config, tmp_path)
    assert run.metrics["score"].iloc[1:].tolist() == [3.5, 3.5, 3.5]
    dropped, games, episodes, epsilons, seeds, settings = zip(*calls, strict=True)
    assert set(dropped) == {dropout}
    assert (set(games), set(episodes), set(epsilons)) == ({"pong"}, {2}, {0.25})
    assert settings == 3 * ({"max_frames": config.max_game_frames, "device": "cpu"},)
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("acting_dropout", [True, False])
def test_the_student_plays_greedily_once_exploration_has_fallen_and_the_pool_has_what_it_saw(
    with_settings, tmp_path, acting_dropout
):
    config = with_settings(dropout=0.0, epsilon_final=0.0, acting_dropout=acting_dropout)
    run = Distillation(config, tmp_path)
    run.states, _ = run.envs.reset(seed=np.arange(4))
    run.started, run.agent_steps = np.ones(4, dtype=bool), config.warmup_steps + config.epsilon_decay_steps
    seen, cut, step = [torch.from_numpy(run.states)], [], run.envs.step

    def watched(actions):
        assert run.student.training == acting_dropout
        assert run.student(seen[-1]).argmax(dim=1).tolist() == actions.tolist()
        result = step(actions)
        seen.append(torch.from_numpy(result[0].copy()))
        cut.append(result[3])
        return result

    run.envs.step = watched
    run.collect(200)
    assert np.flatnonzero(np.any(cut, axis=1)).tolist() == [29], "after 120 frames, in 50 steps of each game"
    assert torch.equal(run.pool.read(run.pool.ids()), torch.cat(seen[:-1]))


def test_training_is_adam_on_the_cross_entropy_to_the_experts_policy_summed_over_each_batch(
    with_settings, tmp_path, monkeypatch
):
    config = with_settings(dropout=0.0)
    run = Distillation(config, tmp_path)
    for _ in range(20):
        run.pool.add(np.random.default_rng(0).integers(256, size=(4, 84, 84), dtype=np.uint8), np.zeros(4, dtype=bool))
    queried, labels = run.pool.ids()[::2], torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(run.student)
    adam = torch.optim.Adam(plain.parameters(), config.learning_rate, eps=config.adam_epsilon)
    losses, agreed, cleared = [], 0, []
    monkeypatch.setattr(loop, "clear_moments", cleared.append)
    for batch in torch.randperm(40, generator=run.generator("shuffle")).split(config.batch_size):
        q_values = plain(run.pool.read(queried[batch]))
        agreed += (q_values.argmax(dim=1) == labels[batch].argmax(dim=1)).sum().item()
        log_policy = (q_values / config.temperature).log_softmax(dim=1)
        loss = -((labels[batch] / config.temperature).softmax(dim=1) * log_policy).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    run.student.eval()
    row = run.train(queried, labels)
    assert run.student.training, "with dropout"
    assert row["loss"] == pytest.approx(sum(losses), rel=1e-4)
    assert row["loss_per_label"] == pytest.approx(sum(losses) / 40, rel=1e-4)
    assert 0 < row["query_agreement"] == agreed / 40 < 1
    assert cleared == [run.optimiser]
    for trained, expected in zip(run.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("acquisition", ["bald", "entropy", "variation_ratio"])
def test_the_highest_scores_of_the_pool_are_asked_about(with_settings, tmp_path, acquisition):
    """All 320 pool states are recorded, with the scores under the same masks: none may beat a queried one."""
    config = with_settings(acquisition=acquisition, dropout=0.9, total_steps=480)  # so that the passes differ
    selection = aamlib.distill(config, tmp_path / "run").selection(2)
    queried = selection[selection["kind"] == "queried"]
    pool = selection[selection["kind"] == "random"]
    assert len(queried) == 32
    assert len(pool) == 320
    others = pool[~pool["state_id"].isin(queried["state_id"])]
    score = f"score_{acquisition}"
    assert others[score].max() <= queried[score].min()
    assert queried[score].mean() > pool[score].mean()


def test_of_the_whole_pool_all_functions_are_the_same_run(with_settings, tmp_path):
    runs = [
        aamlib.distill(with_settings(acquisition=name, query_fraction=1.0, total_steps=480), tmp_path / name)
        for name in ("entropy", "random")
    ]
    known = ["labels_used", "unique_labels", "loss", "probe_expert_kl", "probe_random_kl"]
    pd.testing.assert_frame_equal(runs[0].metrics[known], runs[1].metrics[known])
    assert runs[0].metrics["labels_used"].tolist() == [0, 320, 640]


def test_recorded_states_carry_frames_samples_and_the_experts_q_values(finished, tiny, pong_expert):
    selection = finished.selection(4)
    with_frames = selection.dropna(subset=["frames"])
    assert with_frames.groupby("kind").size().to_dict() == {"queried": 4, "random": 4}
    assert set(with_frames["q_samples"].map(np.shape)) == {(10, 6)}
    stacks = torch.from_numpy(np.stack(with_frames["frames"].to_list()))
    expected = aamlib.load_expert(pong_expert)(stacks)
    np.testing.assert_allclose(np.stack(with_frames["expert_q"].to_list()), expected, rtol=1e-5, atol=1e-5)
    logits = torch.from_numpy(np.stack(with_frames["q_samples"].to_list())) / tiny.temperature
    recomputed = aamlib.ACQUISITIONS["entropy"](logits)
    np.testing.assert_allclose(
        with_frames["score_entropy"], recomputed, atol=0.02
    )  # samples are kept in half precision


def test_a_users_own_function_is_found_used_and_recorded(with_settings, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def margin(logits, *, generator=None):\n    return -logits.mean(1).amax(-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = aamlib.distill(with_settings(acquisition="mine:margin", total_steps=320), tmp_path / "run")
    selection = run.selection(1)
    queried = selection["kind"] == "queried"
    assert selection.loc[queried, "score_mine:margin"].mean() > selection.loc[~queried, "score_mine:margin"].mean()


def test_a_users_function_that_returns_nonsense_later_keeps_the_rounds_done(with_settings, tmp_path, monkeypatch):
    def scores(logits, *, generator=None):
        return logits[:, 0, 0] * (1.0 if run.round < 3 else torch.nan)

    monkeypatch.setitem(aamlib.ACQUISITIONS, "later", scores)
    run = Distillation(with_settings(), tmp_path)  # whose check of the function is passed
    run.config = with_settings(acquisition="later")
    with pytest.raises(aamlib.ConfigError, match="320 of 320 scores are not finite"):
        run.run()
    assert aamlib.Run(tmp_path).status == "interrupted"
    assert aamlib.Run(tmp_path).metrics["round"].tolist() == [0, 1, 2]


def test_a_users_function_that_cannot_work_is_refused_before_anything_is_written(with_settings, tmp_path, monkeypatch):
    (tmp_path / "shapeless.py").write_text("def f(logits, *, generator=None):\n    return logits\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(aamlib.ConfigError, match="one score per state"):
        aamlib.distill(with_settings(acquisition="shapeless:f"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_student_learns_the_experts_policy(with_settings, tmp_path):
    config = with_settings(query_fraction=1.0, learning_rate=2.5e-4, total_steps=1_600)
    metrics = aamlib.distill(config, tmp_path / "run").metrics
    assert metrics["probe_random_kl"].iloc[-1] < 0.2 * metrics["probe_random_kl"].iloc[0]


WRITTEN = ("selections/*.parquet", "checkpoints/*.safetensors", "checkpoints/*.pt", "pool/*.zst", "checkpoints/*.json",
           "metrics.csv", "evaluations.csv", "progress.json")  # fmt: skip
KILLED = """
import fnmatch, json, os, signal, sys
import aamlib
from aamlib import files
config, run_dir, pattern = aamlib.ExperimentConfig(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3]
replace, times = files._replace, 0

def killed(temporary, path):
    global times
    times += fnmatch.fnmatch(path.relative_to(run_dir).as_posix(), pattern)
    if times == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(temporary, path)

files._replace = killed
aamlib.distill(config, run_dir)
"""


def test_killed_just_before_any_of_its_files_is_there_it_goes_on_and_loses_nothing(with_settings, tmp_path):
    config = with_settings(total_steps=13 * 160, query_fraction=1.0, evaluate_every=320, evaluation_episodes=1)
    for pattern in WRITTEN:  # each time one round, or two, are saved before
        command = [sys.executable, "-c", KILLED, json.dumps(config.asdict()), str(tmp_path), pattern]
        assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    run = aamlib.distill(config, tmp_path)
    assert run.status == "finished"
    assert_every_round_once(run, config, rounds=12)
    assert run.metrics["resumed"].sum() == len(WRITTEN)
    assert run.metrics["unique_labels"].tolist() == [0, *range(320, 2_081, 160)], "no label is forgotten"
    assert run.evaluations["agent_steps"].tolist() == [*range(320, 2_080, 320), 2_080]
    assert not [path for path in tmp_path.rglob(".*") if path.parent != tmp_path], "no half-written file stays"


def interrupt_in_round(number, monkeypatch):
    train = Distillation.train

    def interrupted(self, *arguments):
        if self.round == number:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(Distillation, "train", interrupted)


@pytest.fixture(scope="module")
def interrupted_once(tiny, tmp_path_factory):
    """A run that was stopped in round 4."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_round(4, patch)
        return aamlib.distill(tiny, tmp_path_factory.mktemp("interrupted") / "run")


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    """A copy of that run, to go on with."""
    assert interrupted_once.status == "interrupted"
    return aamlib.Run(shutil.copytree(interrupted_once.dir, tmp_path / "run"))


def test_resumed_it_goes_on_as_if_it_had_begun_new_games_without_an_interruption(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_in_round(3, patch)
        aamlib.distill(tiny, tmp_path / "resumed")
    resumed, run_round = aamlib.distill(tiny, tmp_path / "resumed"), Distillation.run_round

    def with_new_games(self):
        if self.round == 2:
            self.states, _ = self.envs.reset(seed=env_seeds(self.config.seed, "games after 2", self.config.n_envs))
            self.started = np.ones(self.config.n_envs, dtype=bool)
        run_round(self)

    monkeypatch.setattr(Distillation, "run_round", with_new_games)
    whole = aamlib.distill(tiny, tmp_path / "whole")
    tables = (learned(run).drop(columns="resumed") for run in (resumed, whole))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    pd.testing.assert_frame_equal(resumed.selection(4), whole.selection(4), check_exact=True)


def test_resumed_after_the_warm_up_it_does_not_play_the_same_games_again(tiny, tmp_path, monkeypatch):
    reset, seeds = _Emulators.reset, []

    def watched(self, *, seed):
        seeds.append(seed)
        return reset(self, seed=seed)

    monkeypatch.setattr(_Emulators, "reset", watched)
    interrupt_in_round(1, monkeypatch)
    for _ in range(2):
        aamlib.distill(tiny, tmp_path)
    first, *_, second = (seed for seed in seeds if len(seed) == tiny.n_envs)
    assert not {*first} & {*second}


def test_stopped_while_saving_it_tells_the_last_round_that_was_saved(with_settings, tmp_path, monkeypatch, capsys):
    saved = checkpoints.write_torch

    def stopped(path, content):
        if path.stem == "000002":
            raise KeyboardInterrupt
        saved(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_torch", stopped)
        run = aamlib.distill(with_settings(), tmp_path / "run")
    assert "goes on after round 1." in capsys.readouterr().out
    assert json.loads((run.dir / "progress.json").read_text())["round"] == 1
    (run.dir / "pool" / ".000000160-000000320.zst.a1b2c3d4").write_bytes(b"left by a process that was killed")
    (run.dir / "pool" / ".keep").write_bytes(b"")
    for name in ("pool/000000000-000000040 (1).zst", "selections/._000001.parquet", "checkpoints/000009 (1).json"):
        (run.dir / name).write_bytes(b"made by a file system or a cloud")
    assert (run.dir / "checkpoints" / "000002.safetensors").exists()
    weights = safetensors.torch.load_file(run.dir / "checkpoints" / "000001.safetensors")
    assert torch.equal(aamlib.load_student(run.dir).head.weight, weights["head.weight"]), "not the unfinished one"
    again = aamlib.distill(with_settings(), run.dir)
    assert_every_round_once(again, with_settings())
    assert [path.name for path in (run.dir / "pool").glob(".*")] == [".keep"]
    assert rounds_of(again) == [1, 2, 3, 4]


def test_stopped_before_anything_is_saved_it_returns_nothing_and_begins_again(tiny, tmp_path, monkeypatch):
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "warm_up", stopped)
        with pytest.raises(KeyboardInterrupt):
            aamlib.distill(tiny, tmp_path)
    assert json.loads((tmp_path / "progress.json").read_text())["status"] == "interrupted"
    assert_every_round_once(aamlib.distill(tiny, tmp_path), tiny)


def test_frames_are_saved_in_pieces_and_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_STATES_PER_SEGMENT", 10)
    random, pool, restored = np.random.default_rng(0), FramePool(60, 3), FramePool(60, 3)
    for number in (1, 2):
        for _ in range(9):
            pool.add(random.integers(256, size=(3, 84, 84), dtype=np.uint8), random.random(3) < 0.2)
        checkpoints.save_checkpoint(tmp_path, number, {}, {}, pool)
    lasts = [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "pool").glob("*.zst"))]
    assert lasts == [4, 8, 9, 13, 17, 18]
    checkpoints.load_checkpoint(tmp_path, restored)
    assert torch.equal(restored.read(restored.ids()), pool.read(pool.ids()))


def test_frames_that_no_checkpoint_needs_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_STATES_PER_SEGMENT", 10)
    random, pool, restored = np.random.default_rng(0), FramePool(15, 3), FramePool(15, 3)  # 5 steps, and 3 before them
    for number in range(1, 5):
        for _ in range(4):
            pool.add(random.integers(256, size=(3, 84, 84), dtype=np.uint8), random.random(3) < 0.2)
        checkpoints.save_checkpoint(tmp_path, number, {}, {}, pool)
    for keep, firsts in ((2, [4, 8, 12]), (1, [8, 12])):
        checkpoints.drop_checkpoints(tmp_path, keep)
        assert [int(path.stem.split("-")[0]) for path in sorted((tmp_path / "pool").glob("*.zst"))] == firsts
        assert len(list((tmp_path / "checkpoints").iterdir())) == 3 * keep
    checkpoints.load_checkpoint(tmp_path, restored)
    assert torch.equal(restored.read(restored.ids()), pool.read(pool.ids()))


def test_frames_of_a_round_that_was_not_saved_do_not_come_into_the_next(tmp_path, monkeypatch):
    random, pool = np.random.default_rng(0), FramePool(60, 3)

    def play(pool):
        for _ in range(5):
            pool.add(random.integers(256, size=(3, 84, 84), dtype=np.uint8), random.random(3) < 0.2)

    def stopped(path, content):
        raise KeyboardInterrupt

    play(pool)
    checkpoints.save_checkpoint(tmp_path, 1, {}, {}, pool)
    play(pool)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save_checkpoint(tmp_path, 2, {}, {}, pool)
    resumed, restored = FramePool(60, 3), FramePool(60, 3)
    checkpoints.load_checkpoint(tmp_path, resumed)
    play(resumed)
    checkpoints.save_checkpoint(tmp_path, 2, {}, {}, resumed)
    checkpoints.load_checkpoint(tmp_path, restored)
    assert torch.equal(restored.read(restored.ids()), resumed.read(resumed.ids()))


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("pt", flip_a_bit),
        ("safetensors", flip_a_bit),
        ("json", lambda content: content[:100]),
        ("json", lambda content: b"[1]"),
        ("json", lambda content: b"{}"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(interrupted, tiny, part, damage):
    newest = interrupted.dir / "checkpoints" / f"000003.{part}"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"damaged checkpoints \(000003: .*\); going on from 000002"):
        run = aamlib.distill(tiny, interrupted.dir)
    assert_every_round_once(run, tiny)
    assert run.metrics["resumed"].tolist() == [0, 0, 0, 1, 0]


def test_a_damaged_hash_is_not_handed_on_to_later_checkpoints(interrupted, tiny):
    before, newest = (interrupted.dir / "checkpoints" / f"00000{number}.json" for number in (2, 3))
    segment = max(name for name in json.loads(before.read_text()) if name.startswith("pool/"))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {segment: "0" * 64}))
    with pytest.warns(UserWarning, match=r"damaged checkpoints \(000003: .*\); going on from 000002"):
        aamlib.distill(tiny, interrupted.dir)
    longer = dataclasses.replace(tiny, total_steps=2 * tiny.total_steps)
    assert_every_round_once(aamlib.distill(longer, interrupted.dir), longer, rounds=9)


def test_frames_damaged_before_a_later_save_are_still_found(tiny, tmp_path, monkeypatch):
    run_dir, train = tmp_path / "run", Distillation.train

    def damage(self, *arguments):
        if self.round == 4:
            segment = max((run_dir / "pool").glob("*.zst"))
            segment.write_bytes(flip_a_bit(segment.read_bytes()))
        return train(self, *arguments)

    monkeypatch.setattr(Distillation, "train", damage)
    assert aamlib.distill(tiny, run_dir).metrics["round"].iloc[-1] == 4
    with pytest.raises(aamlib.RunFolderError, match=r"every checkpoint .* is damaged \("):
        aamlib.distill(dataclasses.replace(tiny, total_steps=2 * tiny.total_steps), run_dir)


def test_a_finished_run_with_a_raised_horizon_runs_again(tiny, tmp_path, monkeypatch):
    run, seen = aamlib.distill(tiny, tmp_path / "run"), []
    assert run.status == "finished"

    def stopped(self):
        seen.append(run.status)
        raise KeyboardInterrupt

    monkeypatch.setattr(Distillation, "run_round", stopped)
    aamlib.distill(dataclasses.replace(tiny, total_steps=2 * tiny.total_steps), run.dir)
    assert seen == ["running"]


@pytest.mark.parametrize("lost", ["config.json", "environment.json"])
def test_a_run_that_has_lost_what_it_was_begun_with_does_not_go_on(interrupted, with_settings, lost):
    (interrupted.dir / lost).unlink()
    before = {path: path.read_bytes() for path in interrupted.dir.rglob("*") if path.is_file()}
    with pytest.raises(aamlib.RunFolderError, match=f"holds checkpoints, but no {lost}, .* copy it back"):
        aamlib.distill(with_settings(seed=7) if lost == "config.json" else with_settings(), interrupted.dir)
    assert {path: path.read_bytes() for path in interrupted.dir.rglob("*") if path.is_file()} == before


def test_a_run_without_its_checkpoints_is_never_begun_again(interrupted, tiny):
    shutil.rmtree(interrupted.dir / "checkpoints")
    kept = [interrupted.dir / name for name in ("metrics.csv", "evaluations.csv", "config.json")]
    before = [path.read_bytes() for path in kept]
    longer = dataclasses.replace(tiny, total_steps=2 * tiny.total_steps)
    with pytest.raises(aamlib.RunFolderError, match="holds the tables of a run, but no checkpoint to go on from"):
        aamlib.distill(longer, interrupted.dir)
    assert [path.read_bytes() for path in kept] == before


def test_when_every_checkpoint_is_damaged_it_says_so(interrupted, tiny):
    for path in (interrupted.dir / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    metrics = (interrupted.dir / "metrics.csv").read_bytes()
    for _ in range(2):  # a second call does not start from nothing either
        with pytest.raises(
            aamlib.RunFolderError, match=r"every checkpoint .*\(000003: [^;]*; 000002: [^;]*\); start the run again"
        ):
            aamlib.distill(tiny, interrupted.dir)
    assert (interrupted.dir / "metrics.csv").read_bytes() == metrics


def test_a_run_that_an_error_ends_is_not_running_any_more(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Distillation, "query", lambda self, *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        aamlib.distill(tiny, tmp_path / "run")
    assert aamlib.Run(tmp_path / "run").status == "interrupted"

    def full(self):
        raise aamlib.RunFolderError("no space left")

    monkeypatch.setattr(Distillation, "report_interrupted", full)
    with pytest.raises(ZeroDivisionError):
        aamlib.distill(tiny, tmp_path / "run")
    monkeypatch.undo()
    assert_every_round_once(aamlib.distill(tiny, tmp_path / "run"), tiny)


def test_the_stop_button_ends_a_run_cleanly_and_the_same_call_goes_on(tiny, tmp_path, monkeypatch, capsys):
    interrupt_in_round(2, monkeypatch)
    run = aamlib.distill(tiny, tmp_path / "run")
    assert run.status == "interrupted"
    assert "goes on after round 1" in capsys.readouterr().out
    assert run.metrics["round"].tolist() == [0, 1]
    monkeypatch.undo()
    assert_every_round_once(aamlib.distill(tiny, tmp_path / "run"), tiny)


def test_a_label_budget_is_used_up_exactly_and_may_be_raised(with_settings, tmp_path):
    run = aamlib.distill(with_settings(label_budget=50), tmp_path / "run")
    assert run.status == "label budget used"
    assert run.metrics["labels_used"].tolist() == [0, 32, 50]
    more = aamlib.distill(with_settings(label_budget=70), tmp_path / "run")
    assert more.metrics["labels_used"].tolist() == [0, 32, 50, 70]
    steps = more.metrics["agent_steps"]
    assert set(more.evaluations["agent_steps"]) >= {steps[2], steps[3]}, "a run is evaluated at its end"


def test_a_finished_run_goes_on_when_its_horizon_is_raised_and_else_stays(with_settings, tmp_path):
    short = aamlib.distill(with_settings(total_steps=480), tmp_path / "run")
    metrics = short.metrics
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    written = checkpoint.stat().st_mtime_ns
    (tmp_path / "run" / "metrics.csv").unlink()
    pd.testing.assert_frame_equal(aamlib.distill(with_settings(total_steps=480), tmp_path / "run").metrics, metrics)
    assert checkpoint.stat().st_mtime_ns == written, "the only checkpoint is not put at risk for nothing"
    assert [start["round"] for start in read_starts(short.dir)] == [0], "nothing was computed"
    config = with_settings(total_steps=800)
    assert_every_round_once(aamlib.distill(config, tmp_path / "run"), config)


def test_another_configuration_is_refused_by_name_of_the_settings(interrupted, with_settings):
    with pytest.raises(
        aamlib.RunFolderError, match=r"dropout = 0\.5 \(the folder has 0\.3\), seed = 1 \(the folder has 0\)"
    ):
        aamlib.distill(with_settings(seed=1, dropout=0.5), interrupted.dir)
    with pytest.raises(aamlib.RunFolderError, match="total_steps = 640"):
        aamlib.distill(with_settings(total_steps=640), interrupted.dir)


def test_a_run_whose_own_function_was_changed_does_not_go_on(with_settings, tmp_path, monkeypatch):
    config = with_settings(acquisition="own:score")
    for folder, sign in (("before", ""), ("after", "-")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(
            f"def score(logits, *, generator=None):\n    return {sign}logits[:, 0, 0]\n"
        )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "before")
        run = aamlib.distill(dataclasses.replace(config, total_steps=320), tmp_path / "run")
        patch.delitem(sys.modules, "own")
    monkeypatch.syspath_prepend(tmp_path / "after")
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(
        aamlib.RunFolderError, match="other source code; restore it, remove the folder to begin again, or choose"
    ):
        aamlib.distill(config, tmp_path / "run")
    with pytest.raises(aamlib.RunFolderError, match="acquisition = 'bald'"):
        aamlib.distill(with_settings(), tmp_path / "run")
    assert run.metrics["round"].max() == 1, "nothing was done"


LOCK = """
import sys
from aamlib.files import lock_run
with lock_run(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_on_one_folder_the_second_stops_until_the_first_ends(with_settings, tmp_path):
    config = with_settings(total_steps=320)
    command = [sys.executable, "-c", LOCK, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(aamlib.RunFolderError, match="in use by another process"):
            aamlib.distill(config, tmp_path / "run")
        other.kill()
    assert aamlib.distill(config, tmp_path / "run").status == "finished"


def test_where_nothing_frees_a_dead_processs_lock_the_file_to_remove_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(aamlib.files, "FileLock", SoftFileLock)  # as filelock does on Lustre mounted with noflock
    with (
        aamlib.files.lock_run(tmp_path / "run"),
        pytest.raises(aamlib.RunFolderError, match=r"If there is none any more, remove .*run\.lock"),
        aamlib.files.lock_run(tmp_path / "run"),
    ):
        pass


def test_progress_says_when_the_newest_score_was_reached(finished):
    progress = json.loads((finished.dir / "progress.json").read_text())
    evaluated = finished.metrics.dropna(subset=["score"]).iloc[-1]
    assert (progress["score"], progress["score_agent_steps"]) == (evaluated["score"], evaluated["agent_steps"])


def test_the_student_of_the_last_round_is_loaded_and_a_folder_without_one_says_so(interrupted, tiny, tmp_path):
    after_round_3 = aamlib.load_student(interrupted.dir).state_dict()
    run = aamlib.distill(tiny, interrupted.dir)
    student = aamlib.load_student(run.dir)
    assert not student.training
    assert student.dropout == tiny.dropout
    assert not torch.equal(after_round_3["head.weight"], student.head.weight)
    with pytest.raises(aamlib.RunFolderError, match="holds no student yet"):
        aamlib.load_student(tmp_path / "other")
    (weights,) = (run.dir / "checkpoints").glob("*.safetensors")
    content = weights.read_bytes()
    for damaged in (flip_a_bit(content), content[:1000]):
        weights.write_bytes(damaged)
        with pytest.raises(aamlib.RunFolderError, match="cannot be read .* go on with its run"):
            aamlib.load_student(run.dir)


def test_bad_input_stops_before_anything_is_written(with_settings, tmp_path):
    breakout = aamlib.save_expert(tmp_path / "b.safetensors", aamlib.NatureDQN(4), {"game": "breakout"})
    for settings, error, message in (
        ({"acquisition": "blad"}, aamlib.ConfigError, "did you mean 'bald'"),
        ({"expert": "ponk"}, aamlib.ExpertError, "no expert 'ponk'"),
        ({"expert": str(breakout)}, aamlib.ExpertError, "plays breakout, not pong"),
    ):
        with pytest.raises(error, match=message):
            aamlib.distill(with_settings(**settings), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_an_expert_s_name_or_file_is_a_setting(as_users, tiny, pong_expert, tmp_path):
    with pytest.raises(aamlib.ExpertError, match="is no torch.nn.Module; a name or a file is given as config.expert"):
        aamlib.distill(tiny, tmp_path / "run", expert=str(pong_expert))


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(aamlib.RunFolderError, match="cannot write in .*file/run"):
        aamlib.distill(tiny, tmp_path / "file" / "run")


FULL_DISK = """
import json, resource, signal, sys
import aamlib
from aamlib import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = aamlib.ExperimentConfig(**json.loads(sys.argv[1]))
aamlib.distill(config, sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))  # smaller than a checkpoint
try:
    aamlib.distill(aamlib.ExperimentConfig(**{**config.asdict(), "total_steps": 800}), sys.argv[2])
except aamlib.RunFolderError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_full_disk_loses_nothing(with_settings, tmp_path):
    config = with_settings(total_steps=480)
    arguments = [json.dumps(config.asdict()), str(tmp_path / "run")]
    result = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, check=True)
    assert "cannot write" in result.stdout
    assert "Make room" in result.stdout
    assert not list((tmp_path / "run").rglob(".*")), "no half-written file stays"
    config = with_settings(total_steps=800)
    assert_every_round_once(aamlib.distill(config, tmp_path / "run"), config)

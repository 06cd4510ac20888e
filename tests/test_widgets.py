"""Views through their traits, without a browser: what is set is what is shown."""

import base64
import io
import itertools
import json
import shutil
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import traitlets
from matplotlib.colors import to_hex
from nbconvert import HTMLExporter
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

import aamlib
from aamlib import figures
from aamlib.atari import action_names
from aamlib.experts import fingerprint
from aamlib.publish import publish
from aamlib.runs import recorded_runs
from aamlib.widgets import base
from aamlib.widgets.base import PolicyPlot
from aamlib.widgets.expert import ExpertView
from aamlib.widgets.scatter import ScatterView
from aamlib.widgets.selection import SelectionView, SideBySide, write_study_gifs

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def runs():
    return recorded_runs([aamlib.DATA_DIR / "sample"])


@pytest.fixture
def view(runs, pong_expert):
    return ExpertView("pong", pong_expert, "pong-bald", runs, steps=60, seed=1, temperature=0.2)


def walk(panel):
    """The panel and everything in it."""
    yield panel
    for child in getattr(panel, "children", ()):
        yield from walk(child)


def controls(panel, name):
    """The widget of a class, from anywhere in the panel."""
    return next(widget for widget in walk(panel) if name in getattr(widget, "_dom_classes", ()))


def test_moving_the_step_changes_frame_policy_mark_and_numbers(view):
    frame, policy = controls(view.panel, "aam-frame"), controls(view.panel, "aam-policy")
    timeline, before = controls(view.panel, "aam-timeline"), view.readout
    first = frame.value, policy.value, timeline.mark
    controls(view.panel, "aam-step").value = 30
    assert view.step == 30
    assert (frame.value, policy.value, timeline.mark) != first
    assert frame.value != first[0]
    assert policy.value != first[1]
    assert timeline.mark[0] > first[2][0]
    assert view.readout != before
    assert "step 30 of 59" in view.readout
    image = np.asarray(Image.open(io.BytesIO(frame.value)))
    np.testing.assert_array_equal(image[::4, ::4], view.recording.frames[30])


def test_the_numbers_and_pictures_are_those_of_the_step(runs, pong_expert):
    view = ExpertView("pong", pong_expert, "pong-bald", runs, steps=150, seed=1, temperature=0.2)
    game, names, tau = view.recording, action_names("pong"), view.temperature
    watched = aamlib.load_student(runs["pong-bald"].dir)(torch.from_numpy(game.stacks())).detach().numpy()
    agreed = (watched.argmax(axis=1) == game.q_values.argmax(axis=1)).mean()
    assert game.rewards.any()
    for step in (0, int(np.flatnonzero(game.rewards)[0]) + 1, 149):
        view.step = step
        q = np.sort(game.q_values[step])
        undecided = entropy(softmax(q / tau))
        text = f": step {step} of 149, {names[game.actions[step]]}, score {sum(game.rewards[:step])}; Q-gap "
        text += f"{q[-1] - q[-2]:.3f}, Q-range {q[-1] - q[0]:.3f}, policy entropy {undecided:.2f} nats (indifferent in "
        assert text in view.readout
        assert f"would do {names[watched[step].argmax()]} (agrees with the expert in {agreed:.0%} of" in view.readout
        for policy, of_step in zip(view.policies(), (game.q_values[step], watched[step]), strict=True):
            np.testing.assert_allclose(policy, softmax(of_step / tau), rtol=1e-3, atol=1e-6)
        axes = view.figure().axes
        frame, strip = (image for ax in axes for image in ax.images)
        np.testing.assert_array_equal(frame.get_array(), game.frames[step])
        np.testing.assert_array_equal(strip.get_array()[1:85, 3 * 86 + 1 : 3 * 86 + 85], game.frames[step])
        marks = [line.get_xdata() for ax in axes for line in ax.lines if len(line.get_xdata()) == 2]
        assert sum(list(mark) == [step, step] for mark in marks) == 2, "over Q-values and over Q-gaps"


def test_whose_game_it_is_and_where_chance_played_is_said(view):
    assert view.figure().get_suptitle() == f"pong, expert {Path(view.expert).stem}, seed 1, student pong-bald"
    best = view.recording.q_values.argmax(axis=1)
    by_chance = np.flatnonzero(best != view.recording.actions)
    assert 0 < len(by_chance) < len(best)
    for step in range(len(best)):
        view.step = step
        assert ("by chance in place of" in view.readout) == (step in by_chance)
    view.step = by_chance[0]
    taken, wanted = (view.actions[action] for action in (view.recording.actions[view.step], best[view.step]))
    assert f", {taken} by chance in place of {wanted}, score" in view.readout


def test_a_click_on_the_timeline_goes_to_its_step(view):
    timeline = controls(view.panel, "aam-timeline")
    view.step = 42
    place = timeline.mark[0]
    view.step = 0
    timeline.clicked = [place, 0.5]
    assert view.step == 42
    timeline.clicked = [1.0, 0.5]
    assert view.step == 59, "right of the axes is the last step"
    for when in (1.0, 2.0):
        timeline.clicked = [place, 0.5, when]
        assert view.step == 42, "the same place again"
        view.step = 0


def test_what_is_chosen_but_not_played_yet_is_said(view):
    assert "Press Play a game" not in view.readout
    view.seed += 1
    assert view.readout.startswith(f"pong, expert {Path(view.expert).stem}, seed {view.seed - 1}: ")
    assert view.readout.endswith("Press Play a game to see what is chosen above")
    view.seed -= 1
    assert "Press Play a game" not in view.readout


def test_decisive_and_indifferent_moments_are_the_extremes_one_after_the_other(view):
    gaps = np.sort(view.recording.q_values, axis=1)[:, -1] - np.sort(view.recording.q_values, axis=1)[:, -2]
    view.jump("q_gap")
    assert view.step == gaps.argmax()
    moments = view.moments("q_gap")
    assert np.diff(sorted(moments)).min() >= 20
    view.jump("q_gap")
    assert view.step == moments[1]
    view.jump("label_entropy")
    assert view.step == view.moments("label_entropy")[0]


def test_the_temperature_redraws_policies_and_entropies(view):
    entropy, policy = controls(view.panel, "aam-entropy"), controls(view.panel, "aam-policy")
    before, sharp = (entropy.value, policy.value), view.policies()[0].max()
    controls(view.panel, "aam-temperature").value = 1.0
    assert view.policies()[0].max() < sharp
    assert entropy.value != before[0]
    assert policy.value != before[1]


def test_policies_drawn_again_look_as_if_drawn_for_the_first_time():
    rng, actions = np.random.default_rng(0), ["NOOP", "LEFT", "RIGHT"]
    plot = PolicyPlot(4.0, 2.0)
    states = [
        (actions, *rng.dirichlet(np.ones(3), 2), rng.dirichlet(np.ones(3), 5)),
        (actions, *rng.dirichlet(np.ones(3), 2), rng.dirichlet(np.ones(3), 5)),
        (actions, *rng.dirichlet(np.ones(3), 2)),
        (actions[:2], np.array([0.5, 0.5])),
    ]
    drawn = [plot.draw(*state) for state in states]
    assert drawn == [PolicyPlot(4.0, 2.0).draw(*state) for state in states]
    assert len(set(drawn)) == len(states)


def test_original_colours_are_of_the_same_step(view):
    view.original_colours = True
    assert view.frame().shape == (210, 160, 3)
    assert Image.open(io.BytesIO(controls(view.panel, "aam-frame").value)).size == (320, 420)


def test_a_view_starts_at_the_step_it_is_given():
    assert ExpertView("pong", steps=10, step=5).step == 5


def test_another_game_is_played_with_the_present_settings(view):
    frames = view.recording.frames
    view.student = "pong-bal"
    with pytest.raises(aamlib.ConfigError, match="unknown student 'pong-bal'; did you mean 'pong-bald'?"):
        view.play()
    view.seed, view.student = 5, ""
    controls(view.panel, "aam-play").click()
    assert view.student_q is None
    assert view.step == 0
    assert not np.array_equal(view.recording.frames, frames)


@pytest.mark.parametrize(("game", "student"), [("pong", "pong-bald"), ("breakout", "")])
def test_unless_one_is_named_a_student_of_the_game_watches(runs, game, student):
    assert ExpertView(game, None, None, runs, steps=5).student == student


def test_a_student_of_this_expert_is_shown_rather_than_one_of_another(runs, tmp_path):
    for name in ("damaged", "taught"):
        shutil.copytree(runs["pong-bald"].dir, tmp_path / name)
    (tmp_path / "damaged" / "environment.json").write_text("{")
    start = {"expert_sha256": fingerprint(aamlib.load_expert("pong-4"))}
    (tmp_path / "taught" / "environment.json").write_text(json.dumps([start]))
    own = {name: aamlib.Run(tmp_path / name) for name in ("damaged", "taught")}
    assert ExpertView("pong", "pong-4", None, {**own, **runs}, steps=5).student == "taught"
    assert ExpertView("pong", "pong", None, {**own, **runs}, steps=5).student == "pong-bald"


def test_another_game_has_its_own_expert_and_student(runs):
    view = ExpertView("pong", None, None, runs, steps=5)
    controls(view.panel, "aam-game").value = "breakout"
    assert (view.expert, view.student) == ("breakout", "")
    controls(view.panel, "aam-play").click()
    assert len(view.actions) == 4
    controls(view.panel, "aam-game").value = "pong"
    assert (view.expert, view.student) == ("pong", "pong-bald")


def test_back_at_a_game_whose_expert_is_not_bundled_it_is_that_expert_again(tmp_path):
    own = aamlib.save_expert(tmp_path / "boxing.safetensors", aamlib.NatureDQN(18), {"game": "boxing"})
    view = ExpertView("boxing", own, steps=5)
    for game, expert in (("pong", "pong"), ("boxing", str(own))):
        controls(view.panel, "aam-game").value = game
        assert view.expert == expert


def test_an_expert_is_offered_as_a_game_by_its_card_or_else_its_name_if_that_is_one(tmp_path, monkeypatch):
    for name, game in {"mine": "seaquest", "boxing": "boxing", "yours": "seaquest"}.items():
        path = aamlib.save_expert(tmp_path / f"{name}.safetensors", aamlib.NatureDQN(18), {"game": game})
        if name != "yours":
            path.with_suffix(".json").unlink()
    for module in ("aamlib.experts", "aamlib.widgets.expert"):
        monkeypatch.setattr(f"{module}.EXPERTS_DIR", tmp_path)
    view = ExpertView("boxing", None, steps=5)
    game = controls(view.panel, "aam-game")
    assert list(game.options) == ["boxing", "seaquest"]
    game.value = "seaquest"
    assert view.expert == "yours"


def test_a_click_beside_the_timeline_s_axes_goes_to_the_end_that_is_nearer(pong_expert):
    view = ExpertView("pong", pong_expert, steps=30)
    timeline = controls(view.panel, "aam-timeline")
    for x, step in ((0.999, 29), (0.001, 0)):
        timeline.clicked = [x, 0.5]
        assert view.step == step


def test_a_student_that_cannot_be_read_leaves_the_game_before(runs, tmp_path):
    run = publish(runs["pong-bald"], tmp_path / "run", student=True)
    view = ExpertView("pong", None, "run", {"run": run}, steps=30)
    weights = next((run.dir / "checkpoints").glob("*.safetensors"))
    weights.write_bytes(b"damaged")
    view.steps = 5
    controls(view.panel, "aam-play").click()
    assert len(view.recording) == len(view.stacks) == len(view.student_q) == 30
    controls(view.panel, "aam-step").value = 29
    assert "step 29 of 29" in view.readout


def test_a_setting_that_a_view_does_not_have_is_refused(runs):
    with pytest.raises(traitlets.TraitError, match="colums"):
        SelectionView(runs, colums=5)
    with pytest.raises(traitlets.TraitError, match="temprature"):
        ExpertView("pong", temprature=5.0)


def test_runs_are_offered_by_what_they_are(runs):
    titles = {"pong-bald": "pong, bald on 40 %, seed 0", "pong-entropy": "pong, entropy on 40 %, seed 0"}
    view = SelectionView(runs, "pong-bald")
    assert dict(map(reversed, controls(view.panel, "aam-run").options)) == titles
    twice = base.run_titles({"mine": runs["pong-bald"], "yours": runs["pong-bald"]})
    assert list(twice.values()) == [f"{titles['pong-bald']} (mine)", f"{titles['pong-bald']} (yours)"]


def test_a_run_made_anew_in_its_folder_is_read_anew(runs, tmp_path):
    run = publish(runs["pong-bald"], tmp_path / "run", selections=1)
    view = SelectionView({"run": run})
    before = view.states
    path = next((run.dir / "selections").iterdir())
    pd.read_parquet(path).assign(score_bald=0.25).to_parquet(path.with_name("new"))
    path.with_name("new").replace(path)
    assert set(view.states["score_bald"]) == {0.25} != set(before["score_bald"])


def test_what_cannot_be_shown_is_said_in_one_sentence(runs, pong_expert):
    with pytest.raises(aamlib.ConfigError, match="unknown student 'pong-bld'; did you mean 'pong-bald'"):
        ExpertView("pong", pong_expert, "pong-bld", runs, steps=5)
    with pytest.raises(aamlib.ExpertError, match="plays pong, not breakout"):
        ExpertView("breakout", pong_expert, steps=5)
    view = ExpertView("pong", pong_expert, "pong-bald", runs, steps=5)
    view.game, view.expert = "breakout", "breakout"
    with pytest.raises(aamlib.ConfigError, match="does not play breakout"):
        view.play()
    view.step = 3
    assert "step 3 of 4" in view.readout, "the game before is still there to look at"
    with pytest.raises(aamlib.ConfigError, match="unknown run 'pong'; did you mean"):
        SelectionView(runs, "pong")
    with pytest.raises(aamlib.ConfigError, match="unknown column 'score_bold' of .*; did you mean 'score_bald'"):
        SelectionView(runs, sort="score_bold")


def test_a_selection_is_sorted_filtered_and_cut_as_told(runs):
    view = SelectionView(runs, "pong-bald")
    assert len(view.shown) == 50
    assert view.shown["score_bald"].is_monotonic_decreasing
    view.sort, view.descending = "q_gap", False
    assert view.shown["q_gap"].is_monotonic_increasing
    view.gaps = (0.05, 0.1)
    assert view.shown["q_gap"].between(0.05, 0.1).all()
    view.gaps, view.agreement = (0.0, float("inf")), "costly mistake"
    assert (view.shown["regret"] > 0.1).all()
    view.agreement = "agree"
    assert (view.shown["student_action"] == view.shown["expert_action"]).all()
    view.agreement, view.sort, view.percentiles = "all", "score_entropy", (90, 100)
    threshold = view.states["score_entropy"].quantile(0.89)
    assert (view.shown["score_entropy"] >= threshold).all()


def test_states_of_equal_scores_have_percentiles_by_chance(runs, tmp_path):
    """Those with frames, which are recorded first, are not all below the others."""
    run = publish(runs["pong-bald"], tmp_path / "run", selections=1)
    path = next((run.dir / "selections").iterdir())
    pd.read_parquet(path).assign(score_variation_ratio=0.0).to_parquet(path)
    view = SelectionView({"run": run}, sort="score_variation_ratio", percentiles=(90, 100))
    n_framed = view.states["frames"].notna().sum()
    assert n_framed < len(view.states)
    assert 0.05 * n_framed < len(view.shown) < 0.15 * n_framed


def test_a_run_is_sorted_by_its_own_function_until_told_otherwise(runs):
    view = SelectionView(runs, "pong-bald")
    dropdown = controls(view.panel, "aam-sort")
    view.run = "pong-entropy"
    assert view.sort == dropdown.value == "score_entropy"
    view.sort = "q_gap"
    view.run = "pong-bald"
    assert view.sort == dropdown.value == "q_gap"


def test_a_round_that_was_not_recorded_is_refused_and_the_slider_takes_the_nearest(runs):
    with pytest.raises(aamlib.RunFolderError, match="no selection of round 77; it has those of "):
        SelectionView(runs, number=77)
    view = SelectionView(runs)
    last = view.round
    view.round = 10**6
    assert view.round == last
    first, second = view.rounds[:2]
    assert second - first > 2
    for number, nearest in ((first + 1, first), (second - 1, second)):
        view.round = number
        assert view.round == nearest


def test_the_numbers_and_pictures_of_a_selection_are_those_of_its_states(runs):
    view = SelectionView(runs, "pong-bald", position=13)
    shown, state = view.shown, view.shown.iloc[13]
    gap = np.diff(np.sort(np.stack(shown["expert_q"].to_list()), axis=1)[:, -2:])
    told = (
        f"50 states, {shown['indifferent'].mean():.0%} expert-indifferent, {shown['costly'].mean():.0%} costly "
        f"mistakes, mean Q-gap {gap.mean():.3f}. State {state['state_id']}: entropy {state['score_entropy']:.2f}, BALD "
        f"{state['score_bald']:.3f} nats, Q-gap {gap[13, 0]:.3f}, regret {state['regret']:.3f}"
    )
    assert view.readout == told
    tile = (slice(86 + 1, 86 + 85), slice(3 * 86 + 1, 3 * 86 + 85))  # second row, fourth column
    grid, strip = (image.get_array() for ax in view.figure().axes for image in ax.images)
    for picture in (grid, np.asarray(Image.open(io.BytesIO(controls(view.panel, "aam-grid").png)))):
        np.testing.assert_array_equal(picture[tile], state["frames"][3])
    np.testing.assert_array_equal(strip[1:85, 1:85], state["frames"][0])
    names, expert, student, passes = view.policies(state)
    assert names == action_names("pong")
    tau = runs["pong-bald"].config["temperature"]
    np.testing.assert_allclose(expert, softmax(state["expert_q"] / tau), rtol=1e-3)
    np.testing.assert_allclose(passes, softmax(state["q_samples"].astype(float) / tau, axis=1), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(student, passes.mean(axis=0))


def test_round_run_and_place_change_grid_and_numbers(runs):
    view = SelectionView(runs, "pong-bald")
    grid, motion = controls(view.panel, "aam-grid"), controls(view.panel, "aam-motion")
    first = grid.png, motion.value, view.readout
    controls(view.panel, "aam-round").value = view.rounds[0]
    assert view.round == view.rounds[0]
    assert (grid.png, motion.value, view.readout) != first
    grid.clicked = [0.25, 0.5]  # third of ten columns, third of five rows
    assert view.position == 22
    assert grid.mark == pytest.approx([0.2, 0.4, 0.1, 0.2])
    assert Image.open(io.BytesIO(motion.value)).n_frames > 1
    view.columns = 5
    assert grid.mark == pytest.approx([0.4, 0.4, 0.2, 0.1])
    controls(view.panel, "aam-run").value = "pong-entropy"
    assert view.run == "pong-entropy"
    assert controls(view.panel, "aam-round").value == view.round
    assert set(view.shown["kind"]) == {"queried"}


def test_no_state_left_is_said_and_not_exported(runs, tmp_path):
    view = SelectionView(runs, "pong-bald", folder=tmp_path)
    view.panel.layout.width = "100%"
    view.gaps = (1e6, 1e7)
    assert view.readout == "No state with recorded frames passes the filters."
    assert view.readout in [text.get_text() for ax in view.figure().axes for text in ax.texts]
    assert view.gaps == (1e6, 1e7)
    hidden = [
        widget for widget in walk(view.panel) if controls(view.panel, "aam-motion") in getattr(widget, "children", ())
    ]
    assert hidden[0].layout.display == "none"
    with pytest.raises(ValueError, match="nothing to export"):
        view.export()
    controls(view.panel, "aam-save").click()
    assert "nothing to export" in controls(view.panel, "aam-problem").value
    assert list(tmp_path.iterdir()) == []
    controls(view.panel, "aam-gaps").value = (0.0, controls(view.panel, "aam-gaps").max)
    assert hidden[0].layout.display is None
    view.gaps = (0.02, 0.08)
    assert controls(view.panel, "aam-gaps").value == (0.02, 0.08)


def test_the_exported_gif_and_table_are_what_is_shown(runs, tmp_path):
    view = SelectionView(runs, "pong-bald", folder=tmp_path / "new")
    gif, table = view.export()
    name = f"pong-bald-on-40-percent-seed-0-round-{view.round}-queried-by-score_bald-"
    assert gif.name.removesuffix(".gif")[:-6] == name
    rows = pd.read_csv(table)
    assert rows["state_id"].tolist() == view.shown["state_id"].tolist()
    assert set(rows["run"]) == {"pong-bald"}
    with Image.open(gif) as image:
        assert image.n_frames == 4
        image.seek(2)
        tile = np.asarray(image.convert("L"))[86 + 1 : 86 + 85, 1:85]
        np.testing.assert_array_equal(tile, view.shown["frames"].iloc[10][2])


def test_a_game_that_the_list_does_not_offer_can_be_set_from_code(view):
    game = controls(view.panel, "aam-game")
    view.game = "ms_pacman"
    assert (view.game, game.value) == ("ms_pacman", None)
    view.game = "breakout"
    assert game.value == "breakout"


def test_another_selection_never_takes_the_place_of_an_exported_one(runs, tmp_path):
    view = SelectionView(runs, "pong-bald", folder=tmp_path)
    settings = {"round": view.rounds[0], "kind": "random", "sort": "q_gap", "descending": False, "gaps": (0.0, 1.0),
                "percentiles": (0, 90), "agreement": "costly mistake", "run": "pong-entropy"}  # fmt: skip
    written = [view.export()]
    for trait, value in settings.items():
        setattr(view, trait, value)
        written.append(view.export())
    namesake = shutil.copytree(runs["pong-bald"].dir, tmp_path.parent / f"{tmp_path.name}-runs" / "pong-bald")
    written.append(SelectionView({"pong-bald": aamlib.Run(namesake)}, folder=tmp_path).export())
    assert len(set(written)) == 10
    assert {path for pair in written for path in pair} == set(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said(runs, tmp_path):
    (tmp_path / "file").touch()
    view = SelectionView(runs, "pong-bald", folder=tmp_path / "file" / "exports")
    controls(view.panel, "aam-save").click()
    assert "choose another folder" in controls(view.panel, "aam-problem").value


@pytest.mark.parametrize("trait", ["temperature", "steps", "seed"])
def test_the_controls_show_whatever_value_the_view_can_have(view, trait):
    limits = ExpertView.class_traits()[trait]
    for value in (limits.min, limits.max):
        view.set_trait(trait, value)
        assert controls(view.panel, f"aam-{trait}").value == pytest.approx(value)
    with pytest.raises(traitlets.TraitError, match=f"'{trait}' trait .* should not be greater than"):
        view.set_trait(trait, 2 * limits.max)


def test_choosing_a_run_reads_no_round_but_the_one_that_is_shown(runs, tmp_path):
    good, other = (publish(runs["pong-bald"], tmp_path / f"{n}", selections=n) for n in (3, 2))
    oldest = sorted((other.dir / "selections").iterdir())[0]
    oldest.write_bytes(oldest.read_bytes()[:2000])
    view = SelectionView({"good": good, "other": other})
    controls(view.panel, "aam-run").value = "other"
    assert (view.run, view.round, view.problem) == ("other", 14, "")
    assert controls(view.panel, "aam-round").options == tuple(view.rounds)


@pytest.mark.parametrize("kind", [SelectionView, ScatterView])
def test_a_run_or_a_round_that_cannot_be_read_is_said_and_the_one_before_stays(runs, tmp_path, kind):
    good, bad = (publish(runs["pong-bald"], tmp_path / name, selections=2) for name in ("good", "bad"))
    newest = sorted((bad.dir / "selections").iterdir())[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:2000])
    view = kind({"good": good, "bad": bad})
    before, run, problem = view.readout, controls(view.panel, "aam-run"), controls(view.panel, "aam-problem")
    run.value = "bad"
    assert f"{newest.name} cannot be read" in problem.value
    assert (run.value, view.run, view.readout) == ("good", "good", before)
    newest.write_bytes(whole)
    run.value = "bad"
    assert (view.run, problem.value) == ("bad", "")
    oldest = sorted((bad.dir / "selections").iterdir())[0]
    oldest.write_bytes(oldest.read_bytes()[:2000])
    controls(view.panel, "aam-round").value = int(oldest.stem)
    assert f"{oldest.name} cannot be read" in problem.value
    assert controls(view.panel, "aam-round").value == view.round == int(newest.stem)


def test_the_studys_gifs_come_from_the_runs_that_there_are(runs, tmp_path):
    changes = {"one": {"seed": 1}, "zero": {"seed": 0}, "other": {"seed": 0, "query_fraction": 0.05}}
    found = {}
    for name, settings in changes.items():
        run = publish(runs["pong-bald"], tmp_path / name, selections=1)
        (run.dir / "config.json").write_text(json.dumps({**run.config, "query_fraction": 0.6, **settings}))
        found[name] = run
    told = write_study_gifs(found, tmp_path / "plots")
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "train_AMN_BALD_perc_60.gif",
        "train_AMN_BALD_perc_60.csv",
    }
    assert [line.split()[0] for line in told if "skipped" in line] == [
        "train_AMN_entropy_perc_100.gif",
        "train_AMN_BALD_perc_5.gif",
        "train_AMN_var_ratio_perc_5.gif",
        "train_AMN_random_perc_5.gif",
        "train_AMN_entropy_perc_60.gif",
        "train_AMN_var_ratio_perc_60.gif",
        "train_AMN_random_perc_60.gif",
    ]
    rows = pd.read_csv(tmp_path / "plots" / "train_AMN_BALD_perc_60.csv")
    assert set(rows["run"]) == {"zero"}
    assert set(rows["kind"]) == {"queried"}
    assert len(rows) == 50
    assert rows["score_bald"].is_monotonic_decreasing


def test_a_run_that_recorded_no_frames_is_said_and_skipped(runs, tmp_path):
    run = publish(runs["pong-bald"], tmp_path / "run", selections=1)
    (path,) = (run.dir / "selections").iterdir()
    pd.read_parquet(path).assign(frames=None, q_samples=None).to_parquet(path)
    (run.dir / "config.json").write_text(json.dumps({**run.config, "query_fraction": 0.6}))
    assert SelectionView({"run": run}, "run", folder=tmp_path).readout == "No frames are recorded."
    told = write_study_gifs({"run": run}, tmp_path / "plots")
    assert len(told) == sum("skipped: no run of" in line for line in told) == 8


def test_an_action_has_its_own_colour_whichever_others_occur(runs):
    view = ScatterView(runs, "pong-bald", color="student_action")
    page = next(child for child in walk(view.panel) if hasattr(child, "legend_encoding"))
    palette, seen = view.palette("student_action"), set()
    for number, kind in itertools.product(view.rounds, ("queried", "random")):
        view.round, view.kind = number, kind
        occurring = set(view.points()["student_action"])
        shown = {name: to_hex(rgba) for name, rgba, _ in page.legend_encoding["color"]["values"]}
        assert shown == {name: palette[name] for name in palette if name in occurring}
        assert [to_hex(rgba) for rgba in page.color] == list(shown.values())
        seen.add(frozenset(occurring))
    assert len(seen) > 1, "nothing is tested where all occur always"


def test_points_that_are_gone_cannot_be_picked(runs):
    view = ScatterView(runs, "pong-bald")
    page = next(child for child in walk(view.panel) if hasattr(child, "legend_encoding"))
    page.selection = [3, 5_000]
    assert view.picked == (3,)


def test_picked_points_show_their_numbers_and_frames(runs):
    view = ScatterView(runs, "pong-bald")
    motion, whole = controls(view.panel, "aam-motion"), view.readout
    before = motion.value
    picked = view.states["frames"].dropna().index[5:9]
    view.picked = tuple(picked.tolist())
    assert view.readout != whole
    of_them = view.states.iloc[picked]
    assert view.readout == (
        f"4 of 2,000 states: {of_them['indifferent'].mean():.1%} expert-indifferent, {of_them['costly'].mean():.1%} "
        f"costly mistakes, mean Q-gap {of_them['q_gap'].mean():.3f}; 4 with frames (the larger points)"
    )
    assert motion.value != before
    np.testing.assert_array_equal(view.stacks(), np.stack(view.states["frames"].iloc[picked].to_list()))
    page = next(child for child in walk(view.panel) if hasattr(child, "y_scale_domain"))
    assert list(page.selection) == picked.tolist(), "picked from code, marked on the page"
    view.picked = (int(view.states.index[view.states["frames"].isna()][0]),)
    assert len(view.stacks()) == 0
    assert motion.layout.display == "none"
    assert controls(view.panel, "aam-nothing").layout.display is None
    view.figure()
    view.round = view.rounds[0]
    assert view.picked == (), "other states stand there now"
    assert motion.layout.display is None


def test_the_points_on_the_page_are_the_rounds_in_their_colours(runs):
    view = ScatterView(runs, "pong-bald")
    page = next(child for child in walk(view.panel) if hasattr(child, "y_scale_domain"))
    for color, number in zip(("indifferent", "q_gap", "student_action", "costly"), view.rounds * 2, strict=False):
        view.color = color
        view.round = number
        points = np.asarray(page.points)
        for axis, (name, domain) in enumerate((("entropy", page.x_scale_domain), ("bald", page.y_scale_domain))):
            place = domain[0] + (points[:, axis] + 1) / 2 * (domain[1] - domain[0])
            np.testing.assert_allclose(place, view.states[f"score_{name}"], rtol=1e-3, atol=1e-4)
        shade = points[:, {"valueA": 2, "valueB": 3}[page.color_by]]
        if color == "q_gap":
            assert np.corrcoef(shade, view.states["q_gap"])[0, 1] > 0.999
        else:
            np.testing.assert_array_equal(shade, view.states[color].astype(int))
        view.figure()


@pytest.mark.parametrize(
    ("view", "trait", "first"), [(SelectionView, "sort", "score_entropy"), (ScatterView, "color", "q_gap")]
)
def test_a_run_without_the_chosen_column_falls_back(runs, tmp_path, view, trait, first):
    own = publish(runs["pong-bald"], tmp_path / "own", selections=1)
    path = next((own.dir / "selections").iterdir())
    pd.read_parquet(path).assign(**{"score_mine:margin": 0.5}).to_parquet(path)
    shown = view({"own": own, "other": runs["pong-entropy"]}, "own", **{trait: "score_mine:margin"})
    dropdown = controls(shown.panel, f"aam-{trait}")
    assert dropdown.value == "score_mine:margin"
    shown.run = "other"
    assert getattr(shown, trait) == dropdown.value == first
    assert "score_mine:margin" not in [column for _, column in dropdown.options]
    shown.run = "own"
    setattr(shown, trait, "score_mine:margin")
    assert dropdown.value == "score_mine:margin"


@pytest.mark.parametrize(
    ("view", "trait", "first_column"), [(SelectionView, "sort", "score_bald"), (ScatterView, "color", "q_gap")]
)
def test_a_run_of_other_rounds_and_columns_is_shown_all_the_same(runs, tmp_path, view, trait, first_column):
    own, other = (publish(runs["pong-bald"], tmp_path / name, selections=2) for name in ("own", "other"))
    first, last = sorted((own.dir / "selections").iterdir())
    pd.read_parquet(last).assign(**{"score_mine:margin": 0.5}).to_parquet(last)
    (other.dir / "selections" / last.name).unlink()
    shown = view({"own": own, "other": other}, "own", **{trait: "score_mine:margin"})
    dropdown = controls(shown.panel, f"aam-{trait}")
    controls(shown.panel, "aam-run").value = "other"
    assert (shown.run, shown.round) == ("other", int(first.stem))
    assert getattr(shown, trait) == dropdown.value == first_column
    assert shown.problem == ""
    shown.figure()


def test_the_range_of_q_gaps_goes_with_the_states(runs, tmp_path):
    wider = publish(runs["pong-bald"], tmp_path / "wider", selections=1)
    path = next((wider.dir / "selections").iterdir())
    states = pd.read_parquet(path)
    path.unlink()
    states.assign(expert_q=states["expert_q"] * 3).to_parquet(path)
    shown = SelectionView({"narrow": runs["pong-bald"], "wider": wider}, "narrow")
    slider = controls(shown.panel, "aam-gaps")
    top = slider.max
    shown.run = "wider"
    assert slider.max == pytest.approx(3 * top, abs=0.3)
    assert (slider.value, shown.gaps) == ((0, slider.max), (0, np.inf))
    slider.value = (0, top + 0.1)
    assert shown.gaps == (0, pytest.approx(top + 0.1))
    shown.run = "narrow"
    assert (slider.value, shown.gaps) == ((0, top), (0, pytest.approx(top + 0.1)))


def test_without_a_live_notebook_views_are_still_pictures(runs, view):
    still = [view, SelectionView(runs, "pong-bald"), ScatterView(runs, "pong-bald")]
    for shown in [*still, SideBySide(still[1], still[1])]:
        bundle = shown._repr_mimebundle_()
        assert set(bundle) == {"image/png", "text/plain"}
        assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width == 1200
    left, right = (ax.images[0].get_array() for ax in SideBySide(still[1], still[2]).figure().axes)
    np.testing.assert_array_equal(left, figures.pixels(still[1].figure()))
    np.testing.assert_array_equal(right, figures.pixels(still[2].figure()))


def test_in_a_live_notebook_they_are_widgets_with_a_picture_to_fall_back_on(runs, monkeypatch):
    monkeypatch.setattr(base, "is_live", lambda: True)
    bundle = SelectionView(runs, "pong-bald")._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", bundle)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert 'src="data:image/png;base64' in page, "saved from JupyterLab, without the widgets' state"


def test_a_student_of_another_expert_is_not_mistaken_for_this_ones(view, runs):
    assert "but was taught by another" in view.readout
    own = ExpertView("pong", runs["pong-bald"].config["expert"], "pong-bald", runs, steps=20)
    assert "agrees with the expert" in own.readout
    assert "taught by another" not in own.readout

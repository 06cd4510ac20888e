"""Figures show what the tables say; the GIF shows every frame where it belongs."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from PIL import Image

from aamlib import figures, plots
from aamlib.atari import action_names

matplotlib.use("Agg")


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def evaluations():
    rows = [
        (run, acquisition, steps, steps // 10, score)
        for run, acquisition in (("a", "bald"), ("b", "bald"), ("c", "random"))
        for steps in (100, 200)
        for score in (steps / 100, steps / 50)
    ]
    return pd.DataFrame(rows, columns=["run", "acquisition", "agent_steps", "labels_used", "score"])


def test_scores_are_one_line_per_run_through_the_means_and_one_legend_entry_per_function(ax, evaluations):
    plots.plot_scores(evaluations, {"expert": 19.0, "random play": -20.0, "a person": 9.0}, x="labels_used", ax=ax)
    runs = [line for line in ax.get_lines() if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert len(runs) == 3
    for line in runs:
        assert line.get_xdata().tolist() == [10, 20]
        assert line.get_ydata().tolist() == [1.5, 3.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "BALD",
        "random",
        "expert (19.0)",
        "random play (-20.0)",
        "a person (9.0)",
    ]
    assert runs[0].get_color() == runs[1].get_color() != runs[2].get_color()


def test_rounds_without_a_value_leave_no_gap_at_zero(ax):
    metrics = pd.DataFrame(
        {"run": "a", "acquisition": "mine:own", "agent_steps": [1, 2, 3], "loss": [5.0, np.nan, 7.0]}
    )
    plots.plot_metric(metrics, "loss", ax=ax)
    assert ax.get_lines()[0].get_ydata().tolist() == [5.0, 7.0]
    assert "nats" in ax.get_ylabel()


@pytest.fixture
def curves():
    """Two functions, `bald` with five seeds and `mine:own` with two, of which one ended early."""
    runs = [("bald", seed, 3) for seed in range(5)] + [("mine:own", 0, 3), ("mine:own", 1, 2)]
    rows = [
        (f"{acquisition}-{seed}", acquisition, 0.1, step * 100, step * 10, step * 10.0 + seed, step / 10 + seed)
        for acquisition, seed, evaluations in runs
        for step in range(1, evaluations + 1)
    ]
    columns = ["run", "acquisition", "query_fraction", "agent_steps", "labels_used", "smoothed", "normalised"]
    return pd.DataFrame(rows, columns=columns).assign(score=lambda table: table["smoothed"] + 1)


def test_five_seeds_are_a_line_in_a_band_and_fewer_a_line_each(ax, curves):
    plots.plot_curves(curves, {"expert": 19.0, "random play": -20.0}, x="labels_used", ax=ax)
    (middle, *seeds), references = ax.get_lines()[:3], ax.get_lines()[3:]
    assert middle.get_xdata().tolist() == [10, 20, 30]
    assert middle.get_ydata().tolist() == [12, 22, 32], "the mean of the middle three of five"
    assert [line.get_ydata().tolist() for line in seeds] == [[10, 20, 30], [11, 21]]
    band = ax.collections[1].get_paths()[0].get_extents()
    assert 10 <= band.y0 < 12
    assert 32 < band.y1 <= 34
    assert [line.get_ydata()[0] for line in references] == [19, -20]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["BALD, IQM of 5 seeds", "mine:own, 2 seeds", "expert (19.0)", "random play (-20.0)"]
    assert middle.get_color() != seeds[0].get_color() == seeds[1].get_color()


def test_a_band_ends_where_the_shortest_run_does(ax, curves):
    curves = curves[(curves["acquisition"] == "bald") & ((curves["run"] != "bald-4") | (curves["agent_steps"] < 300))]
    plots.plot_metric(curves, "smoothed", ax=ax)
    assert ax.get_lines()[0].get_xdata().tolist() == [100, 200]


def test_a_band_has_a_gap_where_a_seed_has_nothing(ax, curves):
    curves = curves[curves["acquisition"] == "bald"]
    nothing = (curves["run"] == "bald-4") & (curves["agent_steps"] == 200)
    plots.plot_curves(curves.assign(smoothed=curves["smoothed"].mask(nothing)), {}, ax=ax)
    assert ax.get_lines()[0].get_ydata().tolist() == pytest.approx([12, np.nan, 32], nan_ok=True)


def test_a_run_without_a_value_yet_does_not_move_the_band(ax, curves):
    curves = curves[curves["acquisition"] == "bald"]
    begun = curves.head(1).assign(run="begun", labels_used=1000, smoothed=np.nan)
    plots.plot_curves(pd.concat([curves, begun]), {}, x="labels_used", ax=ax)
    assert ax.get_lines()[0].get_xdata().tolist() == [10, 20, 30]


def test_runs_without_a_mean_yet_are_dots_with_a_name(ax, curves):
    begun = curves["acquisition"] == "bald"
    plots.plot_curves(curves.assign(smoothed=curves["smoothed"].mask(begun)), {}, ax=ax)
    drawn = dict(
        zip((text.get_text() for text in ax.get_legend().get_texts()), ax.get_legend().legend_handles, strict=True)
    )
    assert isinstance(drawn.pop("BALD"), PathCollection)
    assert drawn
    assert not any(isinstance(handle, PathCollection) for handle in drawn.values())


def test_a_setting_by_which_runs_are_told_apart_follows_the_name():
    assert plots.name_of("bald, n_samples=100") == "BALD, n_samples=100"
    assert plots.name_of("margin:margin, n_samples=100") == "margin, n_samples=100"
    names = ["mine:own", "random", "bald, n_samples=100", "bald", "mine:own, n_samples=25", "bald, n_samples=25"]
    in_order = ["bald", "bald, n_samples=25", "bald, n_samples=100", "random", "mine:own", "mine:own, n_samples=25"]
    assert plots.in_order(names) == in_order
    rates = ["bald, learning_rate=6.25e-06", "bald, learning_rate=1e-05", "bald, learning_rate=0.0001"]
    assert plots.in_order(reversed(rates)) == rates


def test_each_share_is_a_line_of_its_colour(ax, curves):
    own = curves[curves["acquisition"] == "mine:own"]
    larger = own.assign(query_fraction=0.4, run=own["run"] + "-40")
    plots.plot_shares(pd.concat([own, larger]), ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["10 %, 2 seeds", "40 %, 2 seeds"]
    colors = [line.get_color() for line in ax.get_lines()]
    assert len({str(color) for color in colors}) == 2
    assert ax.get_xscale() == "log"
    plots.plot_shares(larger, shares=[0.1], ax=ax)
    np.testing.assert_array_equal(ax.get_lines()[-1].get_color(), colors[-1])


def test_whole_pool_is_a_reference_that_does_not_widen_the_axis(ax, curves):
    whole = curves[curves["run"] == "bald-0"].assign(labels_used=lambda table: table["labels_used"] * 10)
    plots.plot_curves(curves, x="labels_used", all_labels=whole, ax=ax)
    assert "100 % labels" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_xlim()[1] < 40


def test_runs_that_never_reached_a_threshold_are_shown_where_they_ended(ax):
    table = pd.DataFrame(
        [
            ("bald", 0.1, 10.0, 20.0),
            ("bald", 0.1, 30.0, np.inf),
            ("random", 0.4, 5.0, 50.0),
            ("random", 0.4, 0.0, np.inf),
        ],
        columns=["acquisition", "query_fraction", "after", "by"],
    ).assign(x="labels_used", threshold=0.5)
    plots.plot_thresholds(table, ax=ax)
    reached, censored, other, without_mean = ax.get_lines()
    assert reached.get_xdata().tolist() == [10, 20]
    assert (list(censored.get_xdata()), censored.get_marker()) == ([30], ">")
    assert other.get_xdata().tolist() == [5, 50]
    shown = ax.transAxes.inverted().transform(without_mean.get_transform().transform(without_mean.get_xydata()))
    assert shown[0, 0] == pytest.approx(0), "at the left edge"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["BALD, 10 %", "random, 40 %"]


def test_panels_that_share_an_axis_show_all_of_their_thresholds():
    figure, axes = plt.subplots(1, 2, sharex=True)
    for ax, by in zip(axes, (20.0, 90.0), strict=True):
        table = {"acquisition": "bald", "query_fraction": 0.1, "after": by - 10, "by": by, "x": "labels_used"}
        plots.plot_thresholds(pd.DataFrame([table]), ax=ax)
    assert axes[0].get_xlim()[0] <= 10 < 90 <= axes[0].get_xlim()[1]
    plt.close(figure)


def test_areas_show_each_seed_and_an_interval_where_there_is_one(ax):
    areas = pd.DataFrame({"game": "pong", "acquisition": ["bald"] * 5 + ["random"], "query_fraction": 0.1})
    areas["area_agent_steps"] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.3]
    areas["area_agent_steps_noise"] = 0.02
    estimates = pd.DataFrame(
        [("bald", 0.1, 0.7, 0.6, 0.8), ("random", 0.1, 0.3, np.nan, np.nan)],
        columns=["acquisition", "query_fraction", "iqm", "low", "high"],
    )
    plots.plot_areas(areas, estimates, ax=ax)
    bald, random, interval, middle = ax.get_lines()
    assert [bald.get_xdata().tolist(), random.get_xdata().tolist()] == [[0.5, 0.6, 0.7, 0.8, 0.9], [0.3]]
    noise = ax.collections[1].get_segments()[0]
    assert noise[:, 0].tolist() == pytest.approx([0.28, 0.32])
    assert interval.get_xdata().tolist() == [0.6, 0.8]
    assert list(middle.get_xdata()) == [0.7]
    assert ax.get_xlim()[0] <= 0 < 1 <= ax.get_xlim()[1]
    assert ax.get_legend() is None


def test_areas_over_several_games_have_a_marker_for_each(ax):
    areas = pd.DataFrame({"game": ["breakout", "pong"], "acquisition": "bald", "query_fraction": 0.1})
    areas = areas.assign(area_agent_steps=[0.6, 0.8], area_agent_steps_noise=0.02)
    estimates = pd.DataFrame([], columns=["acquisition", "query_fraction", "iqm", "low", "high"])
    plots.plot_areas(areas, estimates, ax=ax)
    drawn = {line.get_marker(): line.get_xdata().tolist() for line in ax.get_lines()[:2]}
    texts, handles = ax.get_legend().get_texts(), ax.get_legend().legend_handles
    assert {text.get_text(): drawn[handle.get_marker()] for text, handle in zip(texts, handles, strict=True)} == {
        "breakout": [0.6],
        "pong": [0.8],
    }


def test_phases_are_stacked_means_over_rounds_without_the_warm_up(ax):
    metrics = pd.DataFrame({"acquisition": "bald", "query_fraction": 0.1, "round": [0, 1, 2]})
    metrics = metrics.assign(seconds_evaluate=[np.nan, np.nan, 10.0], seconds_act=[100.0, 2.0, 4.0])
    plots.plot_phases(metrics, ax=ax)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 3), (3, 5)], "in the order of a round"
    assert ax.get_xlim()[1] > 8, "room for the number at the bar's end"


def test_what_was_asked_stands_beside_the_pools_that_no_function_has_shaped(ax):
    steps = {"agent_steps": [1, 2, 3], "round": [1, 2, 3]}
    entropy = pd.DataFrame({**steps, "run": "a", "acquisition": "entropy", "asked_costly": 0.1, "pool_costly": 0.8})
    random = pd.DataFrame({**steps, "run": "b", "acquisition": "random", "asked_costly": 0.2, "pool_costly": 0.2})
    plots.plot_asked(pd.concat([entropy, random]), "asked_costly", ax=ax)
    assert ax.get_lines()[-1].get_label() == "all states in random's pools"
    assert ax.get_lines()[-1].get_ydata().tolist() == pytest.approx([0.2] * 3)
    plots.plot_asked(entropy, "asked_costly", ax=ax)
    assert ax.get_lines()[-1].get_label() == "all states in the pools"
    assert ax.get_lines()[-1].get_ydata().tolist() == pytest.approx([0.8] * 3)


def test_a_running_mean_is_of_the_rounds_around_and_begins_and_ends_with_its_values(ax):
    values = [np.nan, 0.6, *[np.nan] * 4, 0.8, np.nan]
    rounds = pd.DataFrame({"agent_steps": range(8), "run": "a", "acquisition": "bald", "auroc": values})
    plots.plot_asked(rounds, "auroc", ax=ax)
    means = [np.nan, 0.6, *[0.7] * 5, np.nan]
    assert ax.get_lines()[0].get_ydata().tolist() == pytest.approx(means, nan_ok=True)


@pytest.mark.parametrize(("longer", "unit", "widths"), [(1, "seconds", [90, 120]), (10, "minutes", [15, 20])])
def test_seconds_add_up_per_phase(ax, longer, unit, widths):
    rounds = pd.DataFrame({"seconds_act": [30, 60], "seconds_train": [np.nan, 120], "loss": 1}) * longer
    plots.plot_seconds(rounds, ax=ax)
    assert ax.get_xlabel() == f"{unit} of the run"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["act", "train"]
    assert [bar.get_width() for bar in ax.patches] == widths


@pytest.mark.parametrize("shares", [(0.066, 0.069), (0.13, 0.16), (0.025, 0.13), (0.01, 0.3)])
def test_a_log_scale_has_three_ticks_at_least(ax, shares):
    rounds = pd.DataFrame({"agent_steps": range(2), "run": "a", "acquisition": "bald", "asked_costly": shares})
    plots.plot_asked(rounds.assign(pool_costly=rounds["asked_costly"]), "asked_costly", ax=ax)
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 3


def test_gif_runs_each_state_through_its_four_frames_in_its_place():
    stacks = np.arange(3 * 4, dtype=np.uint8).reshape(3, 4, 1, 1) * 20 + np.zeros((84, 84), np.uint8)
    with Image.open(io.BytesIO(plots.gif_bytes(stacks, columns=2, scale=2))) as gif:
        assert gif.n_frames == 4
        assert gif.size == (2 * 86 * 2, 2 * 86 * 2)
        for frame in range(4):
            gif.seek(frame)
            image = np.asarray(gif.convert("L"))
            for state, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
                pixel = image[(row * 86 + 40) * 2, (column * 86 + 40) * 2]
                assert pixel == stacks[state, frame, 0, 0]
            assert image[(86 + 40) * 2, (86 + 40) * 2] == 255, "a place without a state stays white"


def test_functions_of_ones_own_are_told_from_others():
    names = ["bald", "variation_ratio", "margin:margin", "mine:entropy", "v1:score", "v2:score", "random:random"]
    shown = ["BALD", "variation ratio", "margin", "mine:entropy", "v1:score", "v2:score", "random:random"]
    assert [plots.name_of(name) for name in names] == shown


def test_a_function_has_the_same_colour_over_the_rounds_as_in_comparisons(ax):
    names = ["pool", "entropy", "mine:own", "bald"]
    figures.draw_rounds(ax, pd.DataFrame({"round": 1, "score": names, "q_gap": 0.5}), "q_gap")
    drawn = {line.get_label(): line.get_color() for line in ax.get_lines()}
    assert drawn.pop("pool") == figures.POOL
    assert drawn == {plots.name_of(name): plots.palette(["mine:own", "bald"])[name] for name in names[1:]}


def test_an_own_function_keeps_its_colour_beside_whatever_others_and_none_is_like_another():
    before = plots.palette(["zeta:zeta"])["zeta:zeta"]
    after = plots.palette(["bald", "alpha:alpha", "any", *(f"own{i}:own{i}" for i in range(4)), "zeta:zeta"])
    assert after["zeta:zeta"] == before
    assert len(set(after.values())) == len(after)


def test_a_line_of_one_value_is_seen(ax, curves):
    one = curves[curves["agent_steps"] == 100]
    plots.plot_metric(one, "smoothed", ax=ax)
    assert [line.get_marker() for line in ax.get_lines()] == ["o"] * 3, "a band's middle, and two runs"
    ax.clear()
    plots.plot_metric(curves, "smoothed", ax=ax)
    assert [line.get_marker() for line in ax.get_lines()] == ["None"] * 3


def test_a_legend_below_has_every_entry_once_within_the_figure():
    figure, axes = plt.subplots(1, 2, figsize=(7, 4), layout="constrained")
    names = [f"a function of one's own with a long name, n_samples={i}" for i in range(3)]
    for ax in axes:
        for name in names:
            ax.plot([0, 1], label=name)
        ax.legend()
    plots.legend_below(figure)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert [ax.get_legend() for ax in axes] == [None, None]
    assert figure.bbox.x0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.x1
    plt.close(figure)


def test_a_histogram_says_that_its_last_bar_holds_what_lies_beyond(ax):
    q_values = np.zeros((300, 3))
    q_values[:, 0] = np.linspace(0, 1, 300)
    figures.draw_histogram(ax, q_values, "label_entropy", 0.1)
    assert "above" not in ax.get_xlabel()
    figures.draw_histogram(ax, q_values, "q_gap", 0.1)
    assert ax.get_xlabel().endswith("; last bar: and above")
    assert sum(ax.patches[-1].get_data().values) == len(q_values)


def test_every_action_of_the_largest_set_has_a_colour_of_its_own():
    for n_actions in (4, 10, 18):
        assert len(set(figures.action_palette([str(i) for i in range(n_actions)]).values())) == n_actions


def test_a_long_legend_of_actions_is_as_wide_as_its_axes():
    figure = figures.new_figure(7.4, 3.6)
    axes = figure.subplots(2, 1, height_ratios=(2, 1))
    figures.draw_timeline(axes, np.random.default_rng(0).normal(size=(30, 18)), action_names("seaquest"))
    figure.canvas.draw()
    legend = axes[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.bbox.y1
    assert axes[0].get_window_extent().height > 0.25 * figure.bbox.height

"""The view of an expert: a game that it plays, its Q-values over time, and a student that watches."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from matplotlib.figure import Figure

from aamlib import figures
from aamlib.atari import action_names
from aamlib.cards import read_card
from aamlib.checkpoints import load_student
from aamlib.config import MAX_GAME_FRAMES, ConfigError, playable_games
from aamlib.experts import EXPERTS_DIR, ExpertError, check_fits, fingerprint, load_expert
from aamlib.files import DATA_DIR, NUMBER, RunFolderError
from aamlib.games import colour_frames, load_or_record_game, watch
from aamlib.runs import Run
from aamlib.selections import describe_q
from aamlib.starts import read_starts
from aamlib.widgets.base import Picture, Plot, PolicyPlot, View, labelled, one_of, row, run_titles

_MAX_SEED = 2**31 - 1  # that a control can show
_LONGEST = MAX_GAME_FRAMES // 4  # game, in agent steps
_APART = 20  # agent steps between two moments to jump to, at least
_HISTOGRAMS = ("q_gap", "q_range", "label_entropy")


class ExpertView(View):
    """An expert's game, with its Q-values over time; a trained student may watch the same states.

    Parameters
    ----------
    game, expert:
        A game of ale-py and its expert, bundled or a weights' file; None: the bundled one of the game.
    student:
        Name in `students`, or "" for none; None: one who plays the game, at best of this expert.
    students:
        Runs to choose from, by name; those without a student are left out, and only one of the game can watch it.
    seed, epsilon, steps:
        Of the game that is played; at most `steps` agent steps of it.
    temperature:
        tau of the policies softmax(Q / tau).

    Raises ConfigError for an unknown game or student, ExpertError for an expert that cannot be loaded or does not fit.
    """

    game = traitlets.Unicode()
    expert = traitlets.Unicode()
    student = traitlets.Unicode()
    seed = traitlets.Int(0, min=0, max=_MAX_SEED)
    epsilon = traitlets.Float(0.05, min=0, max=1)
    steps = traitlets.Int(600, min=1, max=_LONGEST)
    temperature = traitlets.Float(0.1, min=1e-3, max=1e2)
    step = traitlets.Int(0)
    original_colours = traitlets.Bool(False)
    played = traitlets.Int(0, help="games played so far; changes when another one is shown")

    def __init__(
        self,
        game: str = "pong",
        expert: str | Path | None = None,
        student: str | None = "",
        students: dict[str, Run] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(game=game, expert=str(expert or game))
        step = settings.pop("step", 0)
        for trait, value in settings.items():
            self.set_trait(trait, value)
        self.students = {name: run for name, run in (students or {}).items() if _has_student(run)}
        if student is None:
            student = self.first_student(game)
        self.student = student
        self.play()
        self.step = step

    def first_student(self, game: str) -> str:
        """A student who plays the game, at best one whom this expert taught, and of a sample run; or "" for none."""
        weights = fingerprint(load_expert(self.expert))

        def rank(name: str) -> tuple[bool, bool]:
            folder, teacher = self.students[name].dir, None
            with contextlib.suppress(RunFolderError):  # told of when this student is chosen
                teacher = next(iter(read_starts(folder)), {}).get("expert_sha256")
            return teacher != weights, DATA_DIR / "sample" not in folder.absolute().parents

        players = [name for name, run in self.students.items() if run.config["game"] == game]
        return min(players, key=rank, default="")

    def play(self) -> None:
        """Play a game with the present settings, and show it from its start."""
        expert, actions = load_expert(self.expert), action_names(self.game)
        check_fits(expert, self.game, self.expert)
        one_of("student", self.student, ["", *self.students])
        if self.student and self.students[self.student].config["game"] != self.game:
            raise ConfigError(f"the student {self.student!r} does not play {self.game}; choose one that does, or none.")
        recording = load_or_record_game(expert, self.game, steps=self.steps, epsilon=self.epsilon, seed=self.seed)
        student_q = watch(load_student(self.students[self.student].dir), recording) if self.student else None
        # All that can fail is done: until here the game before stands.
        self.actions, self.recording, self.student_q = actions, recording, student_q
        starts = read_starts(self.students[self.student].dir) if self.student else []
        self.has_other_teacher = bool(starts) and starts[0].get("expert_sha256") != fingerprint(expert)
        self.shown = self.choice
        self.stacks = recording.stacks()
        self.__dict__.pop("colours", None)
        self.step = 0
        self.played += 1

    @property
    def choice(self) -> dict[str, Any]:
        """What decides the game that `play` plays, and who watches it."""
        return {trait: getattr(self, trait) for trait in ("game", "expert", "student", "seed", "epsilon", "steps")}

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """The game's frames in the console's colours, uint8 (N, 210, 160, 3); made when first asked for."""
        return colour_frames(self.recording)

    def frame(self) -> np.ndarray:
        """The present step's frame: grey (84, 84) as the networks see it, or (210, 160, 3)."""
        return self.colours[self.step] if self.original_colours else self.recording.frames[self.step]

    def policies(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The policies of expert and student at the present step."""
        rows = [None if q is None else q[self.step] for q in (self.recording.q_values, self.student_q)]
        expert, student = (None if q is None else figures.softmax(q, self.temperature) for q in rows)
        assert expert is not None
        return expert, student

    def moments(self, column: str) -> list[int]:
        """Up to ten steps, apart from each other, with the highest q_gap (decisive) or label_entropy (indifferent)."""
        ranked = describe_q(self.recording.q_values, self.temperature)[column].sort_values(ascending=False).index
        found: list[int] = []
        for step in ranked.tolist():
            if len(found) < 10 and all(abs(step - other) >= _APART for other in found):
                found.append(step)
        return found

    def jump(self, column: str) -> None:
        """Go to the first of `moments`, or from one of them to the next."""
        moments = self.moments(column)
        place = moments.index(self.step) + 1 if self.step in moments else 0
        self.step = moments[place % len(moments)]

    @traitlets.validate("step")
    def _within_the_game(self, proposal: Any) -> int:
        return min(max(proposal["value"], 0), len(self.recording) - 1)

    @traitlets.observe("step", "played", "temperature", "game", "expert", "student", "seed", "epsilon", "steps")
    def _tell(self, _: Any = None) -> None:
        if not self.played:
            return
        game, q = self.recording, self.recording.q_values
        numbers = describe_q(q, self.temperature)
        here = numbers.iloc[self.step]
        action, best = self.actions[game.actions[self.step]], self.actions[q[self.step].argmax()]
        if action != best:
            action += f" by chance in place of {best}"
        text = (
            f"{self.title()}: step {self.step} of {len(game) - 1}, {action}, score {game.rewards[: self.step].sum()}; "
            f"Q-gap {here['q_gap']:.3f}, Q-range {here['q_range']:.3f}, policy entropy {here['label_entropy']:.2f} "
            f"nats (indifferent in {numbers['indifferent'].mean():.1%} of the steps)"
        )
        if self.student_q is not None:
            agreed = (self.student_q.argmax(axis=1) == q.argmax(axis=1)).mean()
            wanted = self.actions[self.student_q[self.step].argmax()]
            text += f"; the student {self.shown['student']} would do {wanted} "
            text += f"(agrees with the expert in {agreed:.0%} of the steps"
            text += ", but was taught by another)" if self.has_other_teacher else ")"
        if self.choice != self.shown:
            text += ". Press Play a game to see what is chosen above"
        self.readout = text

    def title(self) -> str:
        """Whose game is shown."""
        return f"{self.shown['game']}, expert {Path(self.shown['expert']).stem}, seed {self.shown['seed']}"

    def figure(self) -> Figure:
        """Frames, Q-values over the game, policies and histograms of the present state."""
        policies = max(1.6, 0.16 * len(self.actions))
        figure = figures.new_figure(12.0, 6.3 + 1.3 * policies)
        axes = figure.subplot_mosaic(
            [["frame", "q", "q"], ["frame", "gap", "gap"], ["strip", "policy", "policy"], [*_HISTOGRAMS]],
            height_ratios=(2, 1, policies, 1.8),
        )
        for name, image in (("frame", self.frame()), ("strip", figures.strip(self.stacks[self.step]))):
            axes[name].imshow(image, cmap="gray", vmin=0, vmax=255)
            axes[name].axis("off")
        student = f", student {self.shown['student']}" if self.shown["student"] else ""
        figure.suptitle(self.title() + student, fontsize="medium")
        axes["frame"].set_title(f"step {self.step}")
        axes["strip"].set_title("the state: its four frames", fontsize="medium")
        figures.draw_timeline((axes["q"], axes["gap"]), self.recording.q_values, self.actions)
        for name in ("q", "gap"):
            axes[name].axvline(self.step, color=figures.STUDENT)
        figures.draw_policies(axes["policy"], self.actions, *self.policies())
        for column in _HISTOGRAMS:
            figures.draw_histogram(axes[column], self.recording.q_values, column, self.temperature)
        return figure

    def make_panel(self) -> ipywidgets.Widget:
        """Controls, the frames beside the timeline, and the histograms."""
        experts = [path.stem for path in sorted(EXPERTS_DIR.glob("*.safetensors"))]
        players = {name: expert for expert in experts for name in _game_of(expert)}
        players |= {name: name for name in players if name in experts} | {self.game: self.expert}
        game = self.link("game", labelled(ipywidgets.Dropdown, "Game", 150, options=sorted(players)))
        expert = labelled(ipywidgets.Dropdown, "Expert", 160, options=sorted({self.expert, *experts}))
        titles = {"": "none", **run_titles(self.students)}
        options = [(title, name) for name, title in titles.items()]
        student = labelled(ipywidgets.Dropdown, "Student", 330, options=options)
        seed = self.link("seed", labelled(ipywidgets.BoundedIntText, "Seed", 120, max=_MAX_SEED))
        steps = self.link("steps", labelled(ipywidgets.BoundedIntText, "Steps at most", 170, min=1, max=_LONGEST))
        play = ipywidgets.Button(description="Play a game", icon="gamepad", button_style="primary")
        slider = labelled(ipywidgets.IntSlider, "Step", 440, max=len(self.recording) - 1)
        run = ipywidgets.Play(interval=100, max=len(self.recording) - 1, show_repeat=False)
        decisive = ipywidgets.Button(description="Most decisive", tooltip="largest Q-gap; again: the next one")
        indifferent = ipywidgets.Button(description="Most indifferent", tooltip="highest entropy; again: the next one")
        colours = labelled(ipywidgets.Checkbox, "Original colours", 130, indent=False)
        temperature = labelled(ipywidgets.FloatLogSlider, "Temperature τ", 420, min=-3, max=2, step=0.05)
        for trait, widget in {
            "expert": expert, "student": student, "step": slider, "original_colours": colours,
            "temperature": temperature,
        }.items():  # fmt: skip
            self.link(trait, widget)
        traitlets.link((slider, "value"), (run, "value"))
        frame = ipywidgets.Image(layout={"width": "344px", "object_fit": "contain"}).add_class("aam-frame")
        strip = ipywidgets.Image(layout={"width": "344px"}).add_class("aam-strip")
        timeline = Picture().add_class("aam-timeline")
        policy = ipywidgets.Image(layout={"max_width": "100%"}).add_class("aam-policy")
        gaps, entropy = (ipywidgets.Image(layout={"max_width": "100%"}) for _ in range(2))
        entropy.add_class("aam-entropy")
        policies, entropies = PolicyPlot(7.2, 2.3), Plot(3.7, 2.4)
        span = [0.0, 1.0, 0.0, 1.0]  # of the timeline's axes: left, width, top, height

        def show_policies(_: Any = None) -> None:
            policy.value = policies.draw(self.actions, *self.policies())

        def show_step(_: Any = None) -> None:
            timeline.mark = [span[0] + span[1] * self.step / max(1, len(self.recording) - 1), span[2], 0.0, span[3]]
            frame.value = figures.to_png(self.frame(), 2 if self.original_colours else 4)
            strip.value = figures.to_png(figures.strip(self.stacks[self.step]))
            show_policies()

        def show_temperature(_: Any = None) -> None:
            entropy.value = entropies.draw(
                figures.draw_histogram, self.recording.q_values, "label_entropy", self.temperature
            )
            show_policies()

        def show_game(_: Any = None) -> None:
            slider.max = run.max = len(self.recording) - 1
            whole = figures.new_figure(7.4, 3.6)
            axes = whole.subplots(2, 1, height_ratios=(2, 1))
            figures.draw_timeline(axes, self.recording.q_values, self.actions)
            timeline.png = figures.to_png(whole)
            upper, lower = (ax.get_position() for ax in axes)
            span[:] = upper.x0, upper.width, 1 - upper.y1, upper.y1 - lower.y0
            halves = figures.new_figure(7.2, 2.4)
            for ax, column in zip(halves.subplots(1, 2), _HISTOGRAMS[:2], strict=True):
                figures.draw_histogram(ax, self.recording.q_values, column, self.temperature)
            gaps.value = figures.to_png(halves)
            show_temperature()
            show_step()

        def play_again(_: Any) -> None:
            with self.telling():
                self.play()

        def choose_players(change: Any) -> None:
            self.expert = players.get(change.new, self.expert)
            self.student = self.first_student(change.new)

        def seek(change: Any) -> None:
            self.step = round((change.new[0] - span[0]) / span[1] * (len(self.recording) - 1))

        self.observe(show_step, ["step", "original_colours"])
        self.observe(show_temperature, ["temperature"])
        self.observe(show_game, ["played"])
        timeline.observe(seek, "clicked")
        self.observe(choose_players, "game")
        play.on_click(play_again)
        play.add_class("aam-play")
        decisive.on_click(lambda _: self.jump("q_gap"))
        indifferent.on_click(lambda _: self.jump("label_entropy"))
        decisive.add_class("aam-decisive")
        show_game()
        return ipywidgets.VBox(
            [
                row(game, expert, student, seed, steps, play),
                self.problem_line(),
                row(run, slider, decisive, indifferent, colours),
                self.readout_line(),
                row(ipywidgets.VBox([frame, strip]), ipywidgets.VBox([timeline, policy])),
                temperature,
                row(gaps, entropy),
            ]
        )


def _game_of(expert: str) -> set[str]:
    """The game that a bundled expert plays, by its card or else its name; none if neither tells."""
    card: dict[str, Any] = {}
    with contextlib.suppress(ExpertError):  # a card that cannot be read matters to those who choose its expert
        card = read_card(expert)
    return {card.get("game", expert)}.intersection(playable_games())


def _has_student(run: Run) -> bool:
    return any((run.dir / "checkpoints").glob(f"{NUMBER}.safetensors"))

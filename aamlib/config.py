"""Settings: every hyper-parameter with its unit, its range and the study's value as default."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from ale_py import roms

RECORDED_PER_RUN = 170_000  # queried, and as many random, states: about 19 MB; 50 a round of the study's with frames
MAX_SEED = 2**63 - 1  # torch's are of 64 bits
FOR_TWO = {"combat", "joust", "maze_craze", "warlords"}  # games with which ale-py ends the process
MAX_GAME_FRAMES = 108_000  # half an hour of the console's, as is usual (Hessel et al. 2018, arXiv:1710.02298)

_C = TypeVar("_C", bound="Config")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the value, what is allowed and the nearest valid name."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed name if there is one, else all of them, or the first twenty."""
    if not (allowed := [name for name in allowed if name]):
        return "there is none."
    if match := difflib.get_close_matches(name.lower(), allowed, n=1):
        return f"did you mean {match[0]!r}?"
    return f"allowed: {', '.join(allowed[:20])}{', ...' if len(allowed) > 20 else ''}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def playable_games() -> list[str]:
    """The ROMs of ale-py that one can play alone."""
    return sorted({*roms.get_all_rom_ids()} - FOR_TWO)


def check_game(game: str) -> str:
    """Return `game` if it is one of `playable_games`; raise ConfigError otherwise."""
    if game in FOR_TWO:
        raise ConfigError(f"{game!r} is for two players, which ale-py cannot run; give a game for one.")
    if game not in playable_games():
        raise ConfigError(f"unknown game {game!r}; {nearest(game, playable_games())}")
    return game


def check_device(device: str) -> str:
    """Return `device` if it is "auto" or names a device for which we compute, here or elsewhere; else ConfigError."""
    try:
        kind = "cpu" if device == "auto" else torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; give 'cpu', 'cuda' or 'auto'.") from error
    if kind not in ("cpu", "cuda"):  # Apple's knows no numbers of 16 bytes, by which frames are put in order
        raise ConfigError(f"device {device!r} is not made use of; give 'cpu', 'cuda' or 'auto'.")
    return device


def available_device(device: str) -> str:
    """Return `device` if torch can compute on it here, for "auto" the fastest; raise ConfigError otherwise."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device {device!r} cannot be used here ({first_line(error)}); try 'cpu'.") from error
    return device


def check_parameters(namespace: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Stop at a parameter that the notebook with these `globals()` does not have; papermill only warns.

    Raises ConfigError.
    """
    allowed = list(allowed)
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]  # by papermill
    for name in _assigned_names(injected[-1] if injected else ""):  # the last: it may have been mended and run again
        if name not in allowed:
            raise ConfigError(f"unknown parameter {name!r}; {nearest(name, allowed)}")


def setting(
    default: Any,
    doc: str,
    *,
    minimum: int | float | None = None,
    above: int | float | None = None,
    maximum: int | float | None = None,
    below: int | float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that documents itself and knows its range."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    return dataclasses.field(default=default, metadata={"doc": doc, "choices": choices, **limits})


class Config:
    """Base of the frozen dataclasses of settings: rejects unknown names, wrong types and values out of range."""

    def __init_subclass__(cls) -> None:
        """Put each setting into the docstring."""
        fields = {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field)}
        lines = [f"{name}: {field.metadata['doc']} (default {field.default!r})" for name, field in fields.items()]
        cls.__doc__ = "\n".join([cls.__doc__ or "", "", *lines])

    def __new__(cls: type[_C], *args: Any, **settings: Any) -> _C:
        """Stop at a name that is no setting, before the dataclass does with less to say."""
        names = cls.names()
        for name in settings:
            if name not in names:
                raise ConfigError(f"unknown setting {name!r}; {nearest(name, names)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _of_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            if value is not None:
                _check_range(field.name, value, field.metadata)

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def from_notebook(cls: type[_C], namespace: Mapping[str, Any], *others: str, **defaults: Any) -> _C:
        """Build from a notebook's `globals()`, where a variable that is None stands for the default.

        Raises ConfigError for a parameter that is neither a setting nor one of `others`.
        """
        check_parameters(namespace, [*cls.names(), *others])
        given = {name: namespace[name] for name in cls.names() if namespace.get(name) is not None}
        return cls(**{**defaults, **given})

    def asdict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def describe(self) -> list[dict[str, Any]]:
        """One row per setting, with its value, default and documentation: for a table in a notebook."""
        return [
            {
                "setting": field.name,
                "value": getattr(self, field.name),
                "default": field.default,
                "meaning": field.metadata["doc"],
            }
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        ]


def _assigned_names(source: str) -> list[str]:
    statements = ast.parse(source).body
    targets = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _of_type(name: str, value: Any, hint: Any) -> Any:
    """`value` as the hinted type; whole floats pass as int, since papermill turns "1e6" into a float."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, np.generic):  # as from np.arange
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return float(value)
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ConfigError(f"{name} = {value!r} is of type {type(value).__name__}; give {allowed}.")


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"{name} = {value!r} is unknown; {nearest(str(value), metadata['choices'])}")
    checks = {
        "minimum": ("at least", lambda bound: value >= bound),
        "above": ("above", lambda bound: value > bound),
        "maximum": ("at most", lambda bound: value <= bound),
        "below": ("below", lambda bound: value < bound),
    }
    bounds = {key: metadata[key] for key in checks if metadata[key] is not None}
    infinite = isinstance(value, float) and not math.isfinite(value)
    if infinite or not all(checks[key][1](bound) for key, bound in bounds.items()):
        wanted = " and ".join(f"{checks[key][0]} {bound:g}" for key, bound in bounds.items())
        kind = "finite value" if infinite else "value"
        raise ConfigError(f"{name} = {value!r} is out of range; give a {kind} {wanted}".rstrip() + ".")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Config):
    """Every hyper-parameter of a distillation run; the defaults are the 2020 study's setting."""

    game: str = setting("pong", "ROM name as ale-py spells it")
    expert: str | None = setting(None, "bundled expert's name or a weights' file; None: the bundled one of the game")
    acquisition: str = setting("bald", "entropy, bald, variation_ratio, random, or your own my_module:my_function")
    query_fraction: float = setting(0.10, "share of the pool that is asked about in a round", above=0, maximum=1)
    seed: int = setting(
        0, "seeds weights, games, exploration, dropout, queries and minibatches", minimum=0, maximum=MAX_SEED
    )
    total_steps: int = setting(
        3_450_000, "horizon in agent steps, warm-up included; the round that reaches it is finished", minimum=1
    )
    label_budget: int | None = setting(
        None, "queries, repeated ones counted again, after which the run ends; None: no limit", minimum=1
    )
    warmup_steps: int = setting(50_000, "agent steps of random play before the first round", minimum=0)
    round_steps: int = setting(10_000, "agent steps per round", minimum=1)
    pool_size: int = setting(100_000, "states that may be asked about: the newest", minimum=1)
    n_envs: int = setting(
        40, "environments side by side; pool_size, round_steps and warmup_steps are multiples of it", minimum=1
    )
    max_game_frames: int = setting(
        MAX_GAME_FRAMES,
        "emulator frames, four an agent step, after which a game is cut",
        minimum=100,
        maximum=2**31 - 1,
    )
    epsilon_final: float = setting(0.1, "exploration after the fall from 1", minimum=0, maximum=1)
    epsilon_decay_steps: int = setting(500_000, "agent steps of that fall, after the warm-up", minimum=1)
    acting_dropout: bool = setting(True, "dropout while the student collects states")
    dropout: float = setting(0.3, "probability that a hidden unit is dropped", minimum=0, below=1)
    n_samples: int = setting(10, "T, the dropout passes of a scoring", minimum=2)
    temperature: float = setting(0.1, "tau of softmax(Q / tau), expert's and student's", above=0)
    batch_size: int = setting(32, "states per gradient step", minimum=1)
    learning_rate: float = setting(6.25e-5, "Adam's rate", above=0)
    adam_epsilon: float = setting(1.5e-4, "Adam's epsilon", minimum=1e-8)
    evaluate_every: int = setting(
        50_000, "agent steps between evaluations, made at a round's end; the run's end has one too", minimum=1
    )
    evaluation_episodes: int = setting(15, "whole games per evaluation", minimum=1)
    evaluation_epsilon: float = setting(0.05, "exploration in evaluation", minimum=0, maximum=1)
    evaluation_dropout: bool = setting(False, "dropout in evaluation")
    probe_states: int = setting(2_000, "states in each of the two probe sets", minimum=1)
    recorded_states: int = setting(
        2_000, "states recorded a round, of the queried and of the pool; fewer in long runs", minimum=1
    )
    recorded_stacks: int = setting(
        200, "of those of each kind, with frames and dropout samples; fewer in long runs", minimum=0
    )
    precision: str = setting(
        "auto",
        "of matrix products; auto: the faster of the two, and int8 for acting and most scores of large pools",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = setting("cpu", "torch device, such as cpu or cuda; auto takes CUDA where there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_game(self.game)
        check_device(self.device)
        for name in ("pool_size", "round_steps", "warmup_steps"):
            if (value := getattr(self, name)) % self.n_envs:
                near = max(0 if name == "warmup_steps" else 1, round(value / self.n_envs)) * self.n_envs
                raise ConfigError(
                    f"{name} = {value} is not a multiple of n_envs = {self.n_envs}; the nearest is {near}."
                )
        if self.query_size(min(self.pool_size, self.warmup_steps + self.round_steps)) < 1:
            raise ConfigError(f"query_fraction = {self.query_fraction} of the pool is less than one state; raise it.")
        if self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"total_steps = {self.total_steps} ends within the warm-up of {self.warmup_steps} steps, before the "
                "expert is asked; raise it."
            )

    @property
    def n_rounds(self) -> int:
        """Rounds after the warm-up, if no label budget ends the run."""
        return math.ceil((self.total_steps - self.warmup_steps) / self.round_steps)

    @property
    def recording(self) -> tuple[int, int]:
        """States, and among them states with frames, that a round records of each kind; fewer in long runs.

        So many over the whole run that its folder stays below 50 MB, unless its horizon is raised later.
        """
        share = min(1, RECORDED_PER_RUN / (self.n_rounds * self.recorded_states))
        return math.ceil(share * self.recorded_states), math.ceil(share * self.recorded_stacks)

    def query_size(self, n_states: int) -> int:
        """States to ask about, of `n_states` in the pool."""
        return round(self.query_fraction * n_states)

    def evaluation_is_due(self, agent_steps: int) -> bool:
        """Whether the round that ends at so many agent steps has reached a multiple of `evaluate_every`."""
        return agent_steps % self.evaluate_every < self.round_steps

    def epsilon(self, agent_steps: int) -> float:
        """Exploration at an agent step: 1 in the warm-up, then falling linearly."""
        fallen = (agent_steps - self.warmup_steps) / self.epsilon_decay_steps
        return 1 - (1 - self.epsilon_final) * min(1, max(0, fallen))


# Settings that differ from the study's. "quick" shows the whole loop on Pong within ten minutes on two cores.
PRESETS: dict[str, dict[str, Any]] = {
    "study": {},
    "quick": {
        "total_steps": 120_000,
        "warmup_steps": 10_000,
        "round_steps": 5_000,
        "pool_size": 20_000,
        "n_envs": 20,  # each takes the emulator 0.2 s to start
        "query_fraction": 0.4,
        "epsilon_decay_steps": 50_000,
        "learning_rate": 2.5e-4,
        "evaluate_every": 25_000,
    },
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, to build an ExperimentConfig on. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return dict(PRESETS[name])

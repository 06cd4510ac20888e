"""Cards of experts: how each was trained and what it scores; written beside its weights by `save_expert`."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aamlib.config import MAX_SEED, Config, setting
from aamlib.experts import EXPERTS_DIR, ExpertError, expert_path
from aamlib.files import write_bytes

_OF_A_STAGE = {"agent_steps", "wall_time_seconds", "settings", "score_seed"}
_OF_A_TRAINING = _OF_A_STAGE | {
    "seed",
    "weights_sha256",
    "scores",
    "score_mean",
    "score_standard_error",
    "random_score_mean",
}


@dataclass(frozen=True)
class CardConfig(Config):
    """How notebook 1 measures an expert for its card."""

    card_episodes: int = setting(30, "whole games for the score on the card", minimum=2)
    card_seed: int = setting(
        3_000_000, "seeds those games, which are never used in training", minimum=0, maximum=MAX_SEED
    )
    temperature: float = setting(0.1, "tau of softmax(Q / tau), by which the expert's indifference is counted", above=0)


def read_card(name: str | Path) -> dict[str, Any]:
    """The card beside an expert's weights; empty if there is none. Raises ExpertError if it cannot be read."""
    path = expert_path(name).with_suffix(".json")
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ExpertError(f"{path} cannot be read ({error}); fetch it again, or remove it.") from error


def stages(card: dict[str, Any]) -> list[dict[str, Any]]:
    """A card after those of the weights that its training started from, oldest first."""
    before = card.get("started_from")
    if before is None:
        return [card]
    return [*stages(before if isinstance(before, dict) else {}), card]  # {}: of weights without a card


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The cards of a folder's experts by name; those with a stage that nobody trained with notebook 1 are left out."""
    cards = {path.stem: read_card(path) for path in sorted(folder.glob("*.safetensors"))}
    cards = {name: card for name, card in cards.items() if card.keys() >= _OF_A_TRAINING}
    return {name: card for name, card in cards.items() if all(stage.keys() >= _OF_A_STAGE for stage in stages(card))}


def card_table(folder: Path = EXPERTS_DIR) -> pd.DataFrame:
    """The experts of a folder, one row each, from their cards; steps and hours are those of all stages together."""
    rows = []
    for name, card in _cards(folder).items():
        margin = 1.96 * card["score_standard_error"]
        rows.append(
            {
                "expert": name,
                "score": round(card["score_mean"], 1),
                "95 % interval": f"{card['score_mean'] - margin:.1f} to {card['score_mean'] + margin:.1f}",
                "games": len(card["scores"]),
                "random play": round(card["random_score_mean"], 1),
                "indifferent": f"{card['indifferent']:.0%}" if "indifferent" in card else "–",
                "agent steps": f"{sum(stage['agent_steps'] for stage in stages(card)) / 1e6:.1f} M",
                "hours": round(sum(stage["wall_time_seconds"] for stage in stages(card)) / 3600, 1),
                "seed": card["seed"],
                "SHA-256 of the weights": card["weights_sha256"][:12],
            }
        )
    return pd.DataFrame(rows or {"expert": []})


def _later(card: dict[str, Any], cards: dict[str, dict[str, Any]]) -> str | None:
    """The expert among `cards` whose training went on from this card's weights."""
    for name, other in cards.items():
        if card["weights_sha256"] in [stage.get("weights_sha256") for stage in stages(other)[:-1]]:
            return name
    return None


def write_readme(folder: Path = EXPERTS_DIR) -> Path:
    """Write README.md beside the experts: their table, and of each the learning curve, commands and remarks."""
    parts = [
        "# Experts",
        "Written by notebooks/01_train_expert.ipynb from the cards (`<expert>.json`), which hold every setting. "
        "Scores are unclipped, of whole games at epsilon 0.05, on seeds that took no part in choosing the weights; "
        "*indifferent*: the share of their states (probe set) in which softmax(Q / 0.1) has over 95 % of the highest "
        "entropy.",
        card_table(folder).to_markdown(index=False),
    ]
    cards = _cards(folder)
    for name, card in cards.items():
        if later := _later(card, cards):
            blocks = [f"Its {len(stages(card))} stages are the first of [{later}](#{later}): see there."]
        else:
            blocks = [textwrap.indent(command, "    ") for command in commands(name, card)]
        parts += [f"## {name}", f"![learning curve]({name}-curve.png)", *blocks]
        parts += [f"- {remark}" for remark in card.get("remarks", [])]
    readme = folder / "README.md"
    write_bytes(readme, ("\n\n".join(parts) + "\n").encode())
    return readme


def commands(name: str, card: dict[str, Any]) -> list[str]:
    """The commands that train and score an expert, one per stage; none if notebook 1 did not train all of them."""
    if not all(stage.keys() >= _OF_A_STAGE for stage in stages(card)):
        return []
    folder = f"data/runs/expert-{name}"
    found = []
    for number, stage in enumerate(stages(card), 1):
        given = {key: value for key, value in stage["settings"].items() if value is not None}
        if number > 1:
            given["start_from"] = f"{folder}-{number - 1}/expert.safetensors"
        measured = {"card_episodes": len(stage.get("scores") or []), "temperature": stage.get("temperature")}
        given |= {key: value for key, value in measured.items() if value not in (0, None, getattr(CardConfig, key))}
        given |= {"card_seed": stage["score_seed"], "run_dir": f"{folder}-{number}"}
        parameters = [f"-p\N{NO-BREAK SPACE}{key}\N{NO-BREAK SPACE}{value}" for key, value in given.items()]
        command = ["papermill notebooks/01_train_expert.ipynb", f"{folder}-{number}.ipynb", "-k python3", *parameters]
        lines = textwrap.wrap(" ".join(command), 110, break_long_words=False, break_on_hyphens=False)
        found.append(" \\\n    ".join(lines).replace("\N{NO-BREAK SPACE}", " "))
    return found


def read_references(game: str, expert: str | None, sha256: str | None) -> dict[str, float]:
    """The scores of "expert" and "random play", from the card of the expert whose weights have this hash.

    `expert` and `sha256` as a run records them. Raises ExpertError if no stage on that expert's card, nor on the game's
    bundled one, is of these weights and has both scores.
    """
    reason = ""
    for name in (expert, game):
        try:
            card = read_card(name) if name else {}
        except ExpertError as error:
            reason = reason or f" ({error})"
            continue
        if card and "weights_sha256" not in card:
            reason = reason or f" (that of {name} lacks the weights' hash, which save_expert writes)"
        for stage in stages(card):  # runs may be older than the expert's last stage
            if stage.get("weights_sha256", "unknown") == sha256:
                if {"score_mean", "random_score_mean"} <= stage.keys():
                    return {"expert": stage["score_mean"], "random play": stage["random_score_mean"]}
                reason = reason or f" (that of {name} lacks score_mean or random_score_mean)"
    raise ExpertError(
        f"the runs of {game} were labelled by an expert ({str(sha256)[:12]}) whose scores no card has{reason}: give "
        f'them as references = {{"{game}": {{"expert": ..., "random play": ...}}}}, or train it anew with its card.'
    )

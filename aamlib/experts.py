"""Experts: the frozen networks that label states. Only safetensors are read: nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aamlib.config import nearest
from aamlib.files import DATA_DIR, write_bytes
from aamlib.networks import FORWARD_BATCH, NatureDQN, reduced_precision

EXPERTS_DIR = DATA_DIR / "experts"
_FORMAT = "aamlib-expert-1"


class ExpertError(ValueError):
    """An expert that cannot be loaded or does not fit; the message says why and what to do next."""


def save_expert(path: str | Path, network: NatureDQN, card: dict[str, Any]) -> Path:
    """Write the weights as safetensors and, beside them, the card as JSON with their SHA-256 added.

    The folder must exist. `card` needs "game"; what else it says of the training is free. Returns the weights' path.
    Raises RunFolderError when they cannot be written.
    """
    path = Path(path)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    normalised = any(name.startswith("trunk.1.") for name in weights)
    metadata = {"format": _FORMAT, "game": card["game"], "normalise": json.dumps(normalised)}
    content = safetensors.torch.save(weights, metadata)
    card_text = json.dumps({**card, "sha256": hashlib.sha256(content).hexdigest()}, indent=2) + "\n"
    write_bytes(path, content)
    write_bytes(path.with_suffix(".json"), card_text.encode())
    return path


def load_expert(name: str | Path) -> NatureDQN:
    """Load a bundled expert ("pong") or one from a file of `save_expert`.

    Returns the frozen network: uint8 (N, 4, 84, 84) -> float32 Q-values (N, A). Raises ExpertError for an unknown
    name, a truncated file or one of another kind.
    """
    path = expert_path(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise ExpertError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: fetch or train it again."
        ) from error
    if metadata.get("format") != _FORMAT or "head.weight" not in weights:
        raise ExpertError(
            f"{path} holds tensors of another kind ({', '.join(sorted(weights)[:3])}, ...); give a file that "
            "aamlib.save_expert wrote."
        )
    network = NatureDQN(len(weights["head.weight"]), normalise=json.loads(metadata.get("normalise", "false")))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExpertError(f"{path} does not fit its network ({reason}); fetch or train it again.") from error
    return network.requires_grad_(False).eval()


@torch.no_grad()
def label(expert: nn.Module, states: UInt8[Tensor, "N 4 84 84"], device: str = "cpu") -> Float[Tensor, "N A"]:
    """The expert's Q-values of many states, in batches; float32 on the CPU, whatever precision is set around."""
    with reduced_precision("float32", device):
        return torch.cat([expert(batch.to(device)).cpu() for batch in states.split(FORWARD_BATCH)])


def read_card(name: str | Path) -> dict[str, Any]:
    """The card beside an expert's weights; empty if there is none."""
    path = expert_path(name).with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def read_references(game: str, expert: str | None, sha256: str | None) -> dict[str, float]:
    """The scores of "expert" and "random play", from the card of the expert whose weights have this hash.

    `expert` and `sha256` as a run records them. Raises ExpertError if neither that expert's card nor the bundled one of
    the game is of these weights and has both scores.
    """
    for name in (expert, game):
        try:
            card = read_card(name) if name else {}
        except (ExpertError, ValueError):
            continue
        if card.get("sha256") == sha256 and {"score_mean", "random_score_mean"} <= card.keys():
            return {"expert": card["score_mean"], "random play": card["random_score_mean"]}
    raise ExpertError(
        f"the runs of {game} were labelled by an expert ({str(sha256)[:12]}) whose scores no card has: give them as "
        f'references = {{"{game}": {{"expert": ..., "random play": ...}}}}, or train it anew with its card.'
    )


def expert_path(name: str | Path) -> Path:
    """The weights' file of a bundled expert's name, or of a path. Raises ExpertError when there is none."""
    bundled = {path.stem: path for path in EXPERTS_DIR.glob("*.safetensors")}
    if str(name) in bundled:
        return bundled[str(name)]
    if Path(name).is_file():
        return Path(name)
    raise ExpertError(f"no expert {str(name)!r}: neither a file nor bundled; {nearest(str(name), sorted(bundled))}")

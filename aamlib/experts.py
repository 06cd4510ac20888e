"""Experts: the frozen networks that label states.

An expert is a bundled name, a file of `save_expert` or of another project's Nature-DQN, a Stable-Baselines3 DQN (zip,
or straight from the Hugging Face hub), or any module of your own. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import numbers
import operator
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aamlib.atari import n_actions
from aamlib.config import first_line, nearest, playable_games
from aamlib.files import DATA_DIR, load_weights_only, make_folder, write_bytes
from aamlib.networks import FORWARD_BATCH, STACK_SHAPE, MCDropoutDQN, NatureDQN, States
from aamlib.precision import reduced_precision

EXPERTS_DIR = DATA_DIR / "experts"
_FORMAT = "aamlib-expert-1"
_NATURE_CNN = "<class 'stable_baselines3.common.torch_layers.NatureCNN'>"
# The five layers of a Nature-DQN under our names, and the shapes of their weights, by which others' are known. None:
# the number of frames, which is checked later, and that of actions.
_LAYERS = {
    "trunk.0": (32, None, 8, 8),
    "trunk.3": (64, 32, 4, 4),
    "trunk.6": (64, 64, 3, 3),
    "trunk.10": (512, 64 * 7 * 7),
    "head": (None, 512),
}


class ExpertError(ValueError):
    """An expert that cannot be loaded or does not fit; the message says why and what to do next."""


def save_expert(path: str | Path, network: nn.Module, card: dict[str, Any]) -> Path:
    """Write the weights as safetensors and, beside them, the card as JSON, with the SHA-256 of file and weights added.

    `card` needs "game", and for runs to be compared the expert's "score_mean" and random play's "random_score_mean";
    the rest is free. Returns the weights' path; their folder is made if need be. Raises RunFolderError when they cannot
    be written, ConfigError for an unknown game, and ExpertError for a card without one or with scores that are no
    numbers, for another number of actions than the game's, and for another kind of module or ending, which could not be
    read back.
    """
    if type(network) not in (NatureDQN, MCDropoutDQN):  # one derived from them may compute otherwise
        raise ExpertError(
            f"a {type(network).__name__} cannot be saved as an expert, only a NatureDQN; give the module itself to "
            "distill."
        )
    if "game" not in card:
        raise ExpertError("the card does not name the game; give it, such as {'game': 'pong'}.")
    path = weights_path(path)
    check_fits(network, card["game"], str(path))
    for name in ("score_mean", "random_score_mean"):
        if not isinstance(score := card.get(name, 0.0), numbers.Real) or not math.isfinite(score):
            raise ExpertError(f"the card has {name} = {card[name]!r}; give a number, or leave it out.")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(weights, {"format": _FORMAT, "game": card["game"]})
    hashes = {"sha256": hashlib.sha256(content).hexdigest(), "weights_sha256": fingerprint(network)}
    try:  # NumPy's arrays and numbers as lists and numbers
        to_lists = operator.methodcaller("tolist")
        card_text = json.dumps({**card, **hashes}, indent=2, default=to_lists, allow_nan=False) + "\n"
    except (AttributeError, TypeError, ValueError) as error:
        raise ExpertError(
            f"the card cannot be written ({error}); give numbers, text, lists and dicts alone."
        ) from error
    make_folder(path.parent)
    write_bytes(path, content)
    write_bytes(path.with_suffix(".json"), card_text.encode())
    return path


def weights_path(path: str | Path) -> Path:
    """The path of weights to be written. Raises ExpertError for an ending by which they would not be known again."""
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ExpertError(f"an expert's weights cannot be written as {path}; give a name that ends in .safetensors.")
    return path


def load_expert(source: str | Path | nn.Module) -> nn.Module:
    """Load an expert and freeze it.

    Parameters
    ----------
    source:
        A bundled name ("pong"); a file of `save_expert`; a Nature-DQN's five layers (pixels in [0, 1], ReLUs between
        them), known by their shapes, as safetensors or as a `state_dict` that `torch.save` wrote; a DQN of
        Stable-Baselines3 with NatureCNN, as a zip file or as "hub:sb3/dqn-PongNoFrameskip-v4" (needs the extra `hub`);
        or a module of your own, which runs know again by its `state_dict`.

    Returns
    -------
    A module in evaluation mode, uint8 (N, 4, 84, 84) -> float32 Q-values (N, A), with the attribute `n_actions`.

    Raises
    ------
    ExpertError
        Unknown name, a file that is truncated or of another kind, no network for the hub, or a module that does not map
        states to Q-values, or has nothing by which it can be known again.
    """
    if not isinstance(source, str | Path | nn.Module):
        raise ExpertError(
            f"an expert cannot be a {type(source).__name__}; give a name, a file, or a torch.nn.Module that maps "
            "states to Q-values."
        )
    if isinstance(source, nn.Module):
        expert, counted = source.eval(), _count_actions(source)
        if (claimed := getattr(expert, "n_actions", None)) is None:
            expert.n_actions = counted  # type: ignore[assignment]
        elif claimed != counted:
            raise ExpertError(
                f"the module {type(expert).__name__} has n_actions = {claimed}, but returned {counted} Q-values a "
                "state; make them agree."
            )
        if not _tensors_of(expert):
            raise ExpertError(
                f"the module {type(expert).__name__} has neither parameters nor buffers, by which a run could know it "
                "again; register what decides its answers as a buffer."
            )
    else:
        path = expert_path(source)
        by_name = {".zip": True, ".safetensors": False}.get(path.suffix)
        is_zip = zipfile.is_zipfile(path) if by_name is None else by_name  # torch.save writes one, too
        weights, game = (_read_zip(path), None) if is_zip else _read_safetensors(path)
        expert = _as_network(path, weights)
        expert.game = game
    for parameter in expert.parameters():  # a TorchScript module cannot do so at once
        parameter.requires_grad_(False)
    return expert.eval()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The weights, and the game on which they were trained, if the file says it in ale-py's spelling."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise ExpertError(
            f"{path} is neither a readable safetensors file ({error}) nor a zip, as Stable-Baselines3 and torch.save "
            "write them; it may be truncated: fetch or save it again. Any other network can be distilled from Python "
            "as a module."
        ) from error
    if metadata.get("format") != _FORMAT or "head.weight" not in weights:
        if (found := _by_shape(weights)) is None:
            raise _another_kind(path, weights)
        weights = found
    game = metadata.get("game")
    return weights, game if game in playable_games() else None


def _by_shape(weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A Nature-DQN's five layers under our names; None if there are others, or not all of them."""
    found = {}
    for ours, shape in _LAYERS.items():
        for name, tensor in weights.items():
            fits = len(shape) == tensor.dim() and all(
                n in (None, size) for n, size in zip(shape, tensor.shape, strict=True)
            )
            if fits and name.endswith("weight"):
                found[f"{ours}.weight"] = tensor
                bias = f"{name.removesuffix('weight')}bias"
                found |= {f"{ours}.bias": weights[bias]} if bias in weights else {}
    complete = {f"{ours}.weight" for ours in _LAYERS} | {"head.bias", "trunk.10.bias"}
    return found if complete <= found.keys() and len(found) == len(weights) else None


def _read_zip(path: Path) -> dict[str, Tensor]:
    """The layers, under our names, of a DQN in a zip of Stable-Baselines3, or in a `state_dict` that torch saved.

    Of Stable-Baselines3's files only policy.pth is loaded; `data`, as text in which pickles stay what they are, tells
    of layers that look like a Nature-DQN's and are others.
    """
    data = b"{}"
    try:
        with zipfile.ZipFile(path) as archive:
            is_sb3 = "policy.pth" in archive.namelist()
            saved = load_weights_only(io.BytesIO(archive.read("policy.pth")) if is_sb3 else path)
            if is_sb3 and "data" in archive.namelist():
                data = archive.read("data")
    except Exception as error:  # zipfile, too, raises nearly anything for a damaged one
        raise ExpertError(
            f"{path} is no readable zip of Stable-Baselines3, nor a state_dict that torch saved ({first_line(error)}). "
            "Nothing in it was executed; save the network's state_dict() alone, or fetch the file again, which may be "
            "truncated."
        ) from error
    weights = {str(name): tensor for name, tensor in saved.items() if isinstance(tensor, Tensor)}
    found = _by_shape({name: tensor for name, tensor in weights.items() if name.startswith("q_net.") or not is_sb3})
    if found is None:
        raise _another_kind(path, saved)
    if differs := _unlike_nature_cnn(data):
        raise ExpertError(
            f"{path} has {differs}, so that with its weights a Nature-DQN would be another network; distil it from "
            "Python as a module."
        )
    return found


def _unlike_nature_cnn(data: bytes) -> str:
    """In what a DQN of Stable-Baselines3 differs from one with NatureCNN, by its `data`; "" if in nothing."""
    try:
        policy = dict(json.loads(data)["policy_kwargs"])
    except (KeyError, TypeError, ValueError):  # of a version that kept it elsewhere
        return ""
    if str(policy.get("normalize_images")) == "False":
        return "normalize_images = False"
    extractor = str(policy.get("features_extractor_class", _NATURE_CNN))
    return "" if extractor == _NATURE_CNN else f"the features extractor {extractor}"


def _another_kind(path: Path, content: Iterable[str]) -> ExpertError:
    return ExpertError(
        f"{path} holds something else than a Nature-DQN ({', '.join(sorted(map(str, content))[:3])}, ...); give a file "
        "that aamlib.save_expert wrote, the weights and biases of such a network's five layers (its state_dict() "
        "alone), or a Stable-Baselines3 DQN with policy 'CnnPolicy' and no layers of your own; any other network can "
        "be distilled from Python as a module."
    )


def _as_network(path: Path, weights: dict[str, Tensor]) -> NatureDQN:
    first = weights.get("trunk.0.weight", torch.empty(0))
    if first.ndim == 4 and first.shape[1] != STACK_SHAPE[0]:
        raise ExpertError(f"{path} takes stacks of {first.shape[1]} frames; give one that was trained on stacks of 4.")
    network = NatureDQN(
        len(weights["head.weight"]), normalise="trunk.1.weight" in weights, conv_bias="trunk.0.bias" in weights
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExpertError(f"{path} does not fit its network ({reason}); fetch or train it again.") from error
    return network


def _count_actions(expert: nn.Module) -> int:
    """A, by asking about two states. Raises ExpertError for a module that does not map states to Q-values."""
    device = next((weight.device for weight in expert.parameters()), "cpu")
    states = torch.full((2, *STACK_SHAPE), 100, dtype=torch.uint8, device=device)
    try:
        with torch.no_grad():
            q_values = expert(states)
        is_tensor = isinstance(q_values, Tensor)
        given = f"returned {q_values.dtype} {tuple(q_values.shape)}" if is_tensor else f"returned a {type(q_values)}"
        fits = is_tensor and q_values.dtype == torch.float32 and q_values.ndim == 2 and len(q_values) == 2
        failure = None
    except Exception as error:  # whatever a user's own module raises
        given, fits, failure = f"failed ({' '.join(repr(error).split())})", False, error
    if not fits:
        raise ExpertError(
            f"the module {type(expert).__name__} {given} for two states, uint8 (2, 4, 84, 84); give one that returns "
            "float32 Q-values, a torch tensor (2, A)."
        ) from failure
    if not (states == 100).all():
        raise ExpertError(
            f"the module {type(expert).__name__} changes the states that it is given; let it change a copy, "
            "states.clone()."
        )
    return q_values.shape[1]


def check_fits(expert: nn.Module, game: str, name: str) -> int:
    """Return the game's number of actions. Raises ExpertError for an expert of another number, or of another game."""
    trained_on = expert.game if isinstance(expert, NatureDQN) else None
    if trained_on not in (None, game):
        raise ExpertError(f"the expert ({name}) plays {trained_on}, not {game}; give an expert of this game.")
    if expert.n_actions != (required := n_actions(game)):
        raise ExpertError(
            f"the expert ({name}) has {expert.n_actions} actions, but {game} has {required}; give an expert of this "
            "game."
        )
    return required


@torch.no_grad()
def label(expert: nn.Module, states: States, device: str = "cpu") -> Float[Tensor, "N A"]:
    """The expert's Q-values of many states, in batches; float32 on the CPU, whatever precision is set around.

    `states` are stacks (N, 4, 84, 84), or for a NatureDQN also their blocks. Raises ExpertError for Q-values that are
    not finite: a student could not learn from them.
    """
    with reduced_precision("float32", device):
        q_values = torch.cat([expert(batch.to(device)).cpu() for batch in states.split(FORWARD_BATCH)])
    if n_bad := int((~q_values.isfinite().all(dim=1)).sum()):
        raise ExpertError(
            f"the expert's Q-values of {n_bad} among {len(states)} states are not finite; mend it, or give another "
            "expert (an action that is never to be taken has a low Q-value, not -inf)."
        )
    return q_values


def fingerprint(expert: nn.Module) -> str:
    """SHA-256 of an expert's weights, hexadecimal, whatever file they came from."""
    weights = {name: tensor.cpu().clone().contiguous() for name, tensor in _tensors_of(expert).items()}  # some are tied
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def _tensors_of(expert: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in expert.state_dict().items() if isinstance(value, Tensor)}


def expert_path(name: str | Path) -> Path:
    """The weights' file of a bundled name, of a path, or of "hub:owner/repository", which is downloaded once.

    A relative path starts in the working folder or, if there is no such file, in the project's. Raises ExpertError when
    there is none.
    """
    if str(name).startswith("hub:"):
        return _download(str(name).removeprefix("hub:"))
    bundled = {path.stem: path for path in EXPERTS_DIR.glob("*.safetensors")}
    if str(name) in bundled:
        return bundled[str(name)]
    for path in (Path(name).expanduser(), DATA_DIR.parent / name):
        if path.is_file():
            return path
    if str(name) in playable_games():
        raise ExpertError(
            f"no expert is bundled for {name}: train one (make expert GAME={name}, or notebook 1), or give a file as "
            "`expert`."
        )
    raise ExpertError(f"no expert {str(name)!r}: neither a file nor bundled; {nearest(str(name), sorted(bundled))}")


def _download(repository: str) -> Path:
    """Stable-Baselines3's zip in a repository of the Hugging Face hub, named like it, as the RL Zoo publishes them."""
    filename = f"{repository.rpartition('/')[2]}.zip"
    by_hand = f"download {filename} from https://huggingface.co/{repository}/tree/main by hand and give its path."
    try:
        import huggingface_hub
    except ImportError:
        raise ExpertError(f"'hub:' needs huggingface_hub: pip install 'aamlib[hub]', or {by_hand}") from None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, filename))
    except Exception as error:  # the hub's own, its HTTP client's, the system's
        raise ExpertError(f"{repository} cannot be fetched ({first_line(error)}); {by_hand}") from error

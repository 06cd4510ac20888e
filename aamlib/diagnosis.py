"""What is measured beside training: probe sets, and the recorded selection of a round. Nothing here is trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from aamlib.acquisition import ACQUISITIONS, find_acquisition, scores_of
from aamlib.atari import sample_states
from aamlib.config import ExperimentConfig
from aamlib.experts import fingerprint, label
from aamlib.files import load_arrays, save_arrays
from aamlib.networks import FORWARD_BATCH, MCDropoutDQN
from aamlib.replay import Ask, FramePool
from aamlib.trunks import packed_trunk

_PROBE_SEED = 2_000_000
_PROBE_GAMES = 40


@dataclass(frozen=True)
class Probe:
    """States on which every student is measured alike, and what the expert says of them."""

    states: UInt8[Tensor, "N 4 84 84"]
    expert_q: Float[Tensor, "N A"]


def load_probes(
    folder: Path, expert: nn.Module, config: ExperimentConfig, *, spare: Path | None = None
) -> dict[str, Probe]:
    """The two probe sets of an expert, "expert" and "random": states that it visits, and states of random play.

    Each is spread evenly over 40 games on seeds of their own, the expert's played at epsilon 0.05. They are made once
    per expert and `max_game_frames`, and kept with its Q-values in `folder`, or in `spare` if that one may not be
    written, in a file named by the hash of its weights. Raises RunFolderError if it cannot be read or written.
    """
    of_expert = f"{config.game}-probe-sets-{fingerprint(expert)[:12]}"
    file_name = f"{of_expert}-{config.probe_states}-{config.max_game_frames}.zst"

    def kept() -> dict[str, np.ndarray] | None:
        paths = (place / file_name for place in (folder, spare) if place is not None)
        return next((load_arrays(path) for path in paths if path.exists()), None)

    if (arrays := kept()) is None:
        print(f"Making the probe states of this expert of {config.game}, once: this may take minutes.", flush=True)
        made = _make_probes(expert, config)
        if (arrays := kept()) is None:  # else another run was first: all are measured by the same
            place = folder if spare is None or os.access(folder, os.W_OK) else spare
            save_arrays(place / file_name, made)
            arrays = made
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: Probe(tensors[name], tensors[f"{name}_q"]) for name in ("expert", "random")}


def _make_probes(expert: nn.Module, config: ExperimentConfig) -> dict[str, np.ndarray]:
    games, arrays = min(_PROBE_GAMES, config.probe_states), {}
    for name, epsilon in (("expert", 0.05), ("random", 1.0)):
        states = sample_states(
            expert, config.game, config.probe_states, games, epsilon, _PROBE_SEED,
            max_frames=config.max_game_frames, device=config.device,
        )  # fmt: skip
        arrays[name] = states.numpy()
        arrays[f"{name}_q"] = label(expert, states, config.device).numpy()
    return arrays


def probe_metrics(student: MCDropoutDQN, probes: dict[str, Probe], config: ExperimentConfig) -> dict[str, float]:
    """KL(expert || student) in nats, greedy agreement and regret on each probe set, dropout off."""
    student.eval()
    trunk = packed_trunk(student)
    metrics = {}
    for name, probe in probes.items():
        with torch.no_grad():
            batches = [student(states.to(config.device), trunk).cpu() for states in probe.states.split(FORWARD_BATCH)]
        student_q = torch.cat(batches)
        metrics[f"probe_{name}_kl"] = F.kl_div(
            torch.log_softmax(student_q / config.temperature, dim=1),
            torch.log_softmax(probe.expert_q / config.temperature, dim=1),
            log_target=True,
            reduction="batchmean",
        ).item()
        action = student_q.argmax(dim=1)
        metrics[f"probe_{name}_agreement"] = (action == probe.expert_q.argmax(dim=1)).float().mean().item()
        metrics[f"probe_{name}_regret"] = regret(probe.expert_q, action).mean().item()
    return metrics


def regret(expert_q: Float[Tensor, "N A"], action: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What the expert thinks an action costs: its best Q-value minus its Q-value of `action`, (N,), >= 0."""
    return expert_q.amax(dim=1) - expert_q.gather(1, action[:, None]).squeeze(1)


def record_selection(
    student: MCDropoutDQN,
    expert_q: Ask,
    pool: FramePool,
    queried: Int64[Tensor, " K"],
    heads: Float[Tensor, "T A F"],
    config: ExperimentConfig,
    generator: torch.Generator,
) -> pd.DataFrame:
    """Scores under every acquisition function, and the expert's Q-values, of queried and of random pool states.

    As many of each kind as `config.recording` says, drawn at random; the first with frames and the student's samples.
    For looking only: these labels do not count as queries. See `Run.selection` for the columns.
    """
    n_states, n_stacks = config.recording
    functions = {**ACQUISITIONS, config.acquisition: find_acquisition(config.acquisition)}
    trunk = packed_trunk(student)
    tables = []
    for kind, candidates in (("queried", queried), ("random", pool.ids())):
        drawn = candidates[torch.randperm(len(candidates), generator=generator)[:n_states]]
        # Neighbours in time beside each other compress well, so the states with frames are sorted among themselves.
        ids = torch.cat([part.sort().values for part in drawn.tensor_split([n_stacks])])
        batches = (pool.read_blocks(batch).to(config.device) for batch in ids.split(FORWARD_BATCH))
        q = torch.cat([student.q_samples(states, heads=heads, trunk=trunk).cpu() for states in batches])  # (N, T, A)
        logits = q / config.temperature
        scores = {
            f"score_{name}": scores_of(function, logits, generator).float().numpy()
            for name, function in functions.items()
        }
        kept = range(min(n_stacks, len(ids)))
        stacks = pool.read(ids[: len(kept)]).numpy()
        table = pd.DataFrame({"kind": kind, "state_id": ids.numpy(), **scores})
        table["expert_q"] = list(pool.label(ids, expert_q, remember=False)[0].numpy())
        table["student_action"] = q.mean(dim=1).argmax(dim=1).numpy().astype(np.int16)
        table["frames"] = pd.Series([stacks[i].tobytes() for i in kept], dtype=object).reindex(table.index)
        table["q_samples"] = pd.Series([q[i].half().flatten().numpy() for i in kept], dtype=object).reindex(table.index)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)

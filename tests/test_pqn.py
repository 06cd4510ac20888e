"""Training of experts: the returns by hand, learning beside a plain loop, and a training that is interrupted."""

import copy
import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch

import aamlib
from aamlib import pqn
from aamlib.atari import env_seeds
from aamlib.pqn import PQNConfig, Training, _Rollout


def test_q_lambda_returns_equal_the_recursion_written_out():
    config = PQNConfig(n_envs=3, rollout_steps=5, gamma=0.9, td_lambda=0.6)
    rng = np.random.default_rng(0)
    rewards, q_values = rng.normal(size=(5, 3)), rng.normal(size=(6, 3, 4)).astype(np.float32)
    ended = rng.random((5, 3)) < 0.3
    rollout = _Rollout(config)
    for t in range(5):
        rollout.record(t, rng.integers(0, 4, 3), rewards[t], ended[t], torch.from_numpy(q_values[t]))
    _, _, targets = rollout.batch(torch.from_numpy(q_values[5]))

    for env in range(3):
        for t in range(5):
            # the lambda-weighted mean of all n-step returns from t, cut at a game's end or the rollout's
            expected, weight, discount, rewards_so_far = 0.0, 1.0, 1.0, 0.0
            for k in range(t, 5):
                rewards_so_far += discount * rewards[k, env]
                discount *= 0.9 * (1 - ended[k, env])
                n_step = rewards_so_far + discount * q_values[k + 1, env].max()
                last = k == 4 or ended[k, env]
                expected += weight * (1.0 if last else 0.4) * n_step
                weight *= 0.6
                if last:
                    break
            assert targets.view(5, 3)[t, env].item() == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module", autouse=True)
def short_games():
    """Evaluations stop after 100 agent steps: an untrained network's games take a thousand to be lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pqn, "evaluate", functools.partial(aamlib.evaluate, max_frames=400))
        yield


@pytest.fixture(scope="module")
def small():
    return PQNConfig(
        total_steps=768, n_envs=4, rollout_steps=32, evaluate_every=256, evaluation_episodes=1, precision="float32"
    )


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A training that went through, as its weights and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    return aamlib.train_expert(small, folder).state_dict(), folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "share_of_peak"), [(0, 1 / 3), (256, 1 / 2), (512, 1 / 6)]
)  # after the rollout 128 more
def test_a_rollout_is_learned_as_a_plain_loop_learns_it(small, tmp_path, step, share_of_peak):
    config = dataclasses.replace(small, game="breakout", warmup_share=0.5, max_grad_norm=1e-3)
    training = Training(config, tmp_path)
    assert not training.network.head.weight.any(), "no maximum over random Q-values"
    torch.nn.init.normal_(training.network.head.weight)
    training.step = step
    seen, taken, env_step = [training.states.copy()], [], training.envs.step

    def watched(actions):
        states, rewards, terminated, truncated, info = env_step(actions)
        seen.append(states.copy())
        taken.append((actions, rewards, terminated | truncated))
        return states, rewards, terminated, truncated, info

    training.envs.step = watched
    training.act()
    torch.manual_seed(3)
    network = copy.deepcopy(training.network)
    targets, loss = training.learn()

    states = torch.from_numpy(np.stack(seen))
    actions, rewards, ended = (np.stack(column) for column in zip(*taken, strict=True))
    with torch.no_grad():
        best_q = torch.stack([network(of_step).amax(dim=1) for of_step in states]).numpy()
    expected, following = np.empty((32, 4)), best_q[32]
    for t in reversed(range(32)):
        bootstrap = config.td_lambda * following + (1 - config.td_lambda) * best_q[t + 1]
        following = expected[t] = rewards[t] + config.gamma * ~ended[t] * bootstrap
    np.testing.assert_allclose(targets.view(32, 4), expected, rtol=1e-4, atol=1e-5)
    states, actions = states[:-1].flatten(0, 1), torch.from_numpy(actions).flatten()
    adam, losses = torch.optim.Adam(network.parameters(), share_of_peak * config.learning_rate, eps=1e-5), []
    torch.manual_seed(3)
    for _ in range(config.epochs):
        for chosen in torch.randperm(128).split(config.minibatch_size):
            q_taken = network(states[chosen])[torch.arange(len(chosen)), actions[chosen]]
            of_batch = (q_taken - targets[chosen]).square().mean()
            adam.zero_grad()
            of_batch.backward()
            norm = torch.cat([weights.grad.flatten() for weights in network.parameters()]).norm()
            assert norm > config.max_grad_norm
            for weights in network.parameters():
                weights.grad *= config.max_grad_norm / norm
            adam.step()
            losses.append(of_batch.item())
    assert loss == pytest.approx(np.mean(losses), rel=1e-3)
    for name, weights in training.network.state_dict().items():
        torch.testing.assert_close(weights, network.state_dict()[name], rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_the_expert_is_the_moving_average_which_is_what_is_evaluated(small, tmp_path, monkeypatch):
    config = dataclasses.replace(small, total_steps=512, ema_decay=0.75, exploration_share=0.5, seed=7)
    learn, make_envs, epsilon_greedy = Training.learn, pqn.make_envs, pqn.epsilon_greedy
    learned, evaluated, made, explored, cleared = [], [], [], [], []

    def watched(self):
        result = learn(self)
        learned.append(copy.deepcopy(self.network.state_dict()))
        return result

    def evaluate(policy, *arguments, **settings):
        evaluated.append((copy.deepcopy(policy.module.state_dict()), arguments, settings))
        return np.array([3.0, 4.0])

    monkeypatch.setattr(Training, "learn", watched)
    monkeypatch.setattr(pqn, "evaluate", evaluate)
    monkeypatch.setattr(pqn, "make_envs", lambda *args, **more: made.append(more) or make_envs(*args, **more))
    monkeypatch.setattr(pqn, "epsilon_greedy", lambda q, share: explored.append(share) or epsilon_greedy(q, share))
    monkeypatch.setattr(pqn, "clear_moments", cleared.append)
    expert = aamlib.train_expert(config, tmp_path).state_dict()
    average = learned[0]
    for weights in learned[1:]:
        average = {name: 0.75 * average[name] + 0.25 * weights[name] for name in average}
    assert len(learned) == len(cleared) == 4
    for name, weights in expert.items():
        torch.testing.assert_close(weights, average[name])
        assert torch.equal(weights, evaluated[-1][0][name])
    assert not torch.allclose(expert["head.weight"], learned[-1]["head.weight"], atol=1e-6)
    assert [call[1:] for call in evaluated] == 2 * [(("pong", 1), {"seed": 7, "device": "cpu"})]
    assert np.genfromtxt(tmp_path / "curve.csv", delimiter=",", names=True)["evaluation_score"].tolist() == [3.5, 3.5]
    assert made == [{"clip_rewards": True, "life_loss_ends": True}]
    assert explored == pytest.approx(np.maximum(0.01, 1 - 0.99 * np.arange(0, 512, 4) / 256))


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_last_evaluation_with_new_games(small, tmp_path, monkeypatch):
    folder, learn, act = tmp_path / "resumed", Training.learn, Training.act

    def stopped(self):
        if self.step > 512:
            raise KeyboardInterrupt
        return learn(self)

    def with_new_games(self):
        if self.step == 512:
            self.states, _ = self.envs.reset(seed=env_seeds(self.config.seed, "train 512", self.config.n_envs))
        act(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "learn", stopped)
        with pytest.raises(KeyboardInterrupt):
            aamlib.train_expert(small, folder)
    (half_written := folder / ".checkpoint.pt.0123abcd").write_bytes(b"killed here")
    expert = aamlib.train_expert(small, folder)
    assert not half_written.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "act", with_new_games)
        whole = aamlib.train_expert(small, tmp_path / "whole").state_dict()
    assert all(torch.equal(weights, whole[name]) for name, weights in expert.state_dict().items())
    curve, of_whole = (
        np.genfromtxt(tmp_path / name / "curve.csv", delimiter=",", names=True) for name in ("resumed", "whole")
    )
    for column in ("agent_steps", "evaluation_score", "loss", "mean_target"):
        assert curve[column].tolist() == of_whole[column].tolist()
    assert curve["agent_steps"].tolist() == [256, 512, 768]
    assert (np.diff(curve["seconds"]) > 0).all()
    assert not expert.training
    (folder / "curve.csv").unlink()
    aamlib.train_expert(small, folder)
    assert len(np.genfromtxt(folder / "curve.csv", delimiter=",", names=True)) == 3, "written with nothing left to do"


@pytest.mark.slow
def test_the_same_seed_trains_the_same_expert_and_a_start_is_taken_up(small, trained, tmp_path):
    again = aamlib.train_expert(small, tmp_path / "again").state_dict()
    assert all(torch.equal(weights, again[name]) for name, weights in trained[0].items())
    path = aamlib.save_expert(tmp_path / "start.safetensors", aamlib.NatureDQN(6, normalise=True), {"game": "pong"})
    training = Training(dataclasses.replace(small, start_from=str(path)), tmp_path / "unused")
    started = aamlib.load_expert(path).state_dict()
    assert all(torch.equal(tensor, started[name]) for name, tensor in training.network.state_dict().items())


@pytest.mark.slow
def test_a_training_goes_on_only_from_the_weights_that_it_was_begun_with(small, tmp_path):
    def save(seed):
        torch.manual_seed(seed)
        return aamlib.save_expert(tmp_path / "s.safetensors", aamlib.NatureDQN(6, normalise=True), {"game": "pong"})

    config = dataclasses.replace(small, start_from=str(save(1)))
    Training(config, tmp_path).save()
    Training(config, tmp_path)
    save(2)
    with pytest.raises(aamlib.RunFolderError, match="was begun from other weights than .* has now; put those back"):
        Training(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_a_training_goes_on_in_the_precision_that_it_began_with_where_that_is_to_be_had(
    small, tmp_path, monkeypatch, works
):
    config = dataclasses.replace(small, precision="auto", total_steps=256)
    monkeypatch.setattr(pqn, "bfloat16_works", lambda device: works)
    monkeypatch.setattr(pqn, "fastest_precision", lambda device: "bfloat16")
    Training(config, tmp_path).save()
    monkeypatch.setattr(pqn, "fastest_precision", lambda device: "float32")
    assert Training(config, tmp_path).precision == ("bfloat16" if works else "float32")


@pytest.mark.slow
def test_another_configuration_or_a_damaged_checkpoint_is_refused(small, trained, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / "copy")
    with pytest.raises(aamlib.RunFolderError, match=r"gamma = 0\.9 \(the folder has 0\.99\)"):
        aamlib.train_expert(dataclasses.replace(small, gamma=0.9), folder)
    with pytest.raises(aamlib.RunFolderError, match="total_steps = 1024 .*; give the folder's own settings or choose"):
        aamlib.train_expert(dataclasses.replace(small, total_steps=1024), folder)
    with pytest.raises(aamlib.ExpertError, match="no expert 'pnog'"):
        aamlib.train_expert(dataclasses.replace(small, start_from="pnog"), tmp_path / "new")
    with pytest.raises(aamlib.ExpertError, match=r"\(pong\) plays pong, not breakout"):
        aamlib.train_expert(dataclasses.replace(small, game="breakout", start_from="pong"), tmp_path / "new")
    plain = aamlib.save_expert(tmp_path / "plain.safetensors", aamlib.NatureDQN(6), {"game": "pong"})
    with pytest.raises(aamlib.ExpertError, match=r"for pong \(6 actions\) cannot start from .*: it is another network"):
        aamlib.train_expert(dataclasses.replace(small, start_from=str(plain)), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists(), "the folder is free for the call that was meant"
    with pytest.raises(aamlib.ConfigError, match="unknown game 'pongg'; did you mean 'pong'"):
        dataclasses.replace(small, game="pongg")
    with pytest.raises(aamlib.ConfigError, match="total_steps = 128 is no more than one rollout, .* = 128, from which"):
        dataclasses.replace(small, total_steps=128)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    with pytest.raises(aamlib.RunFolderError, match=r"holds checkpoints, but no config\.json"):
        aamlib.train_expert(dataclasses.replace(small, gamma=0.9), folder)
    (folder / "config.json").write_bytes(config)
    torch.save({"step": 1}, folder / "checkpoint.pt")
    with pytest.raises(aamlib.RunFolderError, match="checkpoint.pt is no checkpoint of this training"):
        aamlib.train_expert(small, folder)
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(aamlib.RunFolderError, match="checkpoint.pt cannot be read .* remove it to start again"):
        aamlib.train_expert(small, folder)

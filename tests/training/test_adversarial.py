import pytest
import torch
from torch import nn

from pipeline.attacks import engine
from pipeline.course import tint
from pipeline.params import Adversarial
from pipeline.training import adversarial
from pipeline.training.adversarial import (
    adversarial_loss,
    epsilon_at,
    move,
    overfitting_gap,
    replay,
    resume_replay,
)
from pipeline.training.losses import cross_entropy
from pipeline.training.perturb import length


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return tint.tiles(4, 0)


class Seen(nn.Module):
    """A network that remembers what it was shown while training."""

    def __init__(self):
        super().__init__()
        self.network, self.batches = tint.network(4), []

    def forward(self, images):
        self.batches.append((self.training, torch.is_grad_enabled(), images.detach().clone()))
        return self.network(images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "method,evaluations", [("pgd", 3), ("trades", 4), ("fast", 1), ("free", 0)]
)
def test_every_batch_is_moved_within_the_budget(batch, method, evaluations, norm):
    """And moving it costs the forward passes the method promises, in evaluation mode."""
    torch.manual_seed(0)
    model = Seen().train()
    budget = {"linf": 8, "l2": 1.5}[norm]
    config = Adversarial(method=method, norm=norm, epsilon=budget, steps=3)
    for _ in range(2):  # free begins with the image itself
        model.batches.clear()
        loss, _ = adversarial_loss(model, *batch, cross_entropy, config, 1.0)
        loss.backward()
    assert model.training and [b[0] for b in model.batches] == [False] * evaluations + [True]
    moved = model.batches[-1][2][-4:]
    longest, radius = length(moved - batch[0], norm).max(), {"linf": 8 / 255, "l2": 1.5}[norm]
    assert 0.2 * radius < float(longest) <= radius + 1e-6
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1


def test_moving_raises_the_loss(batch):
    torch.manual_seed(0)
    model = tint.network(4)
    moved = move(model, *batch, norm="linf", epsilon=8 / 255, steps=5)
    assert cross_entropy(model(moved), batch[1]) > cross_entropy(model(batch[0]), batch[1])
    assert all(p.grad is None for p in model.parameters())


def test_the_budget_grows_from_nothing(batch):
    config = Adversarial(method="pgd", epsilon=4, warmup=0.5)
    assert [255 * epsilon_at(config, p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0, 2, 4, 4])
    assert epsilon_at(Adversarial(method="pgd", norm="l2", epsilon=0.5), 0.3) == 0.5  # as attack.l2
    model = tint.network(4)
    loss, logs = adversarial_loss(model, *batch, cross_entropy, config, 0.0)
    assert torch.equal(loss, cross_entropy(model(batch[0]), batch[1])) and logs["epsilon"] == 0


def test_trades_of_unmoved_images_is_the_clean_loss(batch, monkeypatch):
    monkeypatch.setattr(adversarial, "move", lambda segmenter, images, *_, **__: images)
    model = tint.network(4)
    config = Adversarial(method="trades", epsilon=8)
    loss, logs = adversarial_loss(model, *batch, cross_entropy, config, 1.0)
    assert torch.allclose(loss, cross_entropy(model(batch[0]), batch[1]), atol=1e-6)
    assert abs(float(logs["divergence"])) < 1e-6


def test_free_replays_a_batch_and_moves_it_by_the_gradient_of_the_update(batch):
    torch.manual_seed(0)
    model, config = Seen(), Adversarial(method="free", epsilon=8, steps=2)
    other = tint.tiles(4, 1)
    losses = [adversarial_loss(model, *b, cross_entropy, config, 1.0)[0] for b in (batch,)]
    losses[0].backward()
    # dropped: the first is still replayed
    loss, _ = adversarial_loss(model, *other, cross_entropy, config, 1.0)
    loss.backward()
    first, second = (b[2] for b in model.batches)
    assert torch.equal(first, batch[0])
    assert 0 < float((second - batch[0]).abs().max()) <= 8 / 255 + 1e-6
    adversarial_loss(model, *other, cross_entropy, config, 1.0)
    assert float((model.batches[-1][2] - other[0]).abs().max()) <= 8 / 255 + 1e-6


def test_ignored_pixels_do_not_move_weights(batch):
    images, labels = batch[0], batch[1].clone()
    labels[:, :16] = 255
    for method in ("pgd", "trades", "fast"):
        gradients = []
        for fill in (0.0, 1.0):
            torch.manual_seed(0)
            model = nn.Conv2d(3, 2, 1)
            changed = images.clone()
            changed[:, :, :16] = fill
            loss, _ = adversarial_loss(
                model, changed, labels, cross_entropy, Adversarial(method=method, steps=2), 1.0
            )
            gradients.append(torch.autograd.grad(loss, model.weight)[0])
        assert torch.allclose(*gradients, atol=1e-6), method


def test_free_goes_on_in_the_middle_of_a_replayed_batch(batch):
    def step(model, images, labels) -> float:
        loss, _ = adversarial_loss(model, images, labels, cross_entropy, config, 1.0)
        loss.backward()
        return float(loss.detach())

    config, other = Adversarial(method="free", epsilon=8, steps=3), tint.tiles(4, 1)
    torch.manual_seed(0)
    model = nn.Conv2d(3, 2, 3, padding=1)
    assert replay(model) is None
    step(model, *batch)
    again = nn.Conv2d(3, 2, 3, padding=1)
    again.load_state_dict(model.state_dict())
    forgotten = step(again, *other)
    resume_replay(again, replay(model))
    resumed = step(again, *other)
    assert resumed == step(model, *other) and resumed != forgotten


def test_free_goes_on_where_a_checkpoint_leaves_its_tensors_elsewhere(batch):
    """Lightning reads a checkpoint on the CPU, whatever the training's device; a wider number
    stands for it here.
    """
    config = Adversarial(method="free", epsilon=8, steps=3)
    losses = []
    for kind in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 2, 3, padding=1)
        adversarial_loss(model, *batch, cross_entropy, config, 1.0)[0].backward()
        state = {k: v.to(kind) if k in {"images", "delta"} else v for k, v in replay(model).items()}
        resume_replay(model, state)
        losses.append(adversarial_loss(model, *batch, cross_entropy, config, 1.0)[0])
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_the_one_step_of_the_gap_starts_at_the_image(batch):
    model = tint.train(Adversarial(), 10)
    config = Adversarial(method="fast", epsilon=4)
    first, second = (overfitting_gap(model, *batch, config)["fgsm_iou"] for _ in range(2))
    moved = engine.fgsm(engine.Target(model, *batch, "linf", 4 / 255))
    assert first == second == pytest.approx(tint.pooled(model, moved, batch[1]), abs=0.02)


def test_gap_of_one_step_and_many(batch):
    config = Adversarial(method="fast", epsilon=4)
    model = tint.train(Adversarial(), 40)
    gap = overfitting_gap(model, *batch, config)
    assert gap["overfitting_gap"] == gap["fgsm_iou"] - gap["pgd_iou"] and 0 <= gap["pgd_iou"] <= 1
    masked = nn.Sequential(nn.Identity(), model)
    assert masked.training and overfitting_gap(masked, *batch, config) and masked.training

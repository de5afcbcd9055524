"""Losses and gradients of the methods against closed forms and plain loops."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from sslzoo_training.method import Method, find_method, list_methods
from sslzoo_training.methods.byol import BYOL, byol_loss, tau_schedule
from sslzoo_training.methods.rotation import Rotation, rotate_all
from sslzoo_training.methods.simsiam import SimSiam, negative_cosine


def thin_encoder(in_chans: int = 3) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(
        "resnet18", num_classes=0, channels=[4, 8, 8, 16], stem_type="deep", stem_width=4, in_chans=in_chans
    )
    return net


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]


def test_byol_loss_is_the_squared_distance_of_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    p, z = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    distances = [float(((a / a.norm() - b / b.norm()) ** 2).sum()) for a, b in zip(p, z, strict=True)]
    assert byol_loss(p, z).item() == pytest.approx(sum(distances) / 5, rel=1e-5)
    assert byol_loss(p, p).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(p, -p).item() == pytest.approx(4)
    assert byol_loss(7 * p, z).item() == pytest.approx(byol_loss(p, z).item(), rel=1e-5)
    assert byol_loss(p, z).item() == pytest.approx(2 + 2 * negative_cosine(p, z).item(), rel=1e-5)


def test_cosine_losses_and_the_schedule_are_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    schedule = pytest.importorskip("lightly.utils.scheduler").cosine_schedule
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.randn(16, 32, generator=generator) for _ in range(2))
    assert negative_cosine(p, z).item() == pytest.approx(loss(p, z).item(), abs=1e-6)
    assert byol_loss(p, z).item() == pytest.approx(2 + 2 * loss(p, z).item(), abs=1e-6)
    for step in (0, 3, 50, 100):  # lightly reaches the end at its last step
        assert tau_schedule(0.99, step / 100) == pytest.approx(schedule(step, 101, 0.99, 1.0), abs=1e-12)


def test_byol_sums_both_orders_of_the_views(views: list[Tensor]) -> None:
    method = BYOL(thin_encoder(), hidden_dim=32, dim=16).train()
    p1, p2 = (method.predictor(method.projector(method.encoder(v))) for v in views)
    t1, t2 = (method.target["projector"](method.target["encoder"](v)) for v in views)
    expected = byol_loss(p1, t2) + byol_loss(p2, t1)
    assert method(views, torch.arange(6))["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    swapped = method(views[::-1], torch.arange(6))["loss"].item()
    assert swapped == pytest.approx(expected.item(), rel=1e-5)


def test_byol_target_gets_no_gradient_and_follows_the_online_network(views: list[Tensor]) -> None:
    method = BYOL(thin_encoder(), hidden_dim=32, dim=16, tau=0.9).train()
    before = copy.deepcopy(method.target)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method(views, torch.arange(6))["loss"].backward()
    optimizer.step()
    targets = list(method.target.parameters())
    assert all(p.grad is None for p in targets)
    assert all(torch.equal(a, b) for a, b in zip(targets, before.parameters(), strict=True))  # not by the optimizer
    method.after_step(0.0)
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    for old, new, student in zip(before.parameters(), targets, online, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
    method(views, torch.arange(6))  # the two networks differ by now, and so do their statistics
    statistics = method.target["encoder"].layer4[0].bn1.running_mean
    assert not torch.equal(statistics, before["encoder"].layer4[0].bn1.running_mean)  # its own, from its own batches
    assert not torch.equal(statistics, method.encoder.layer4[0].bn1.running_mean)


def test_byol_tau_goes_from_its_start_to_one() -> None:
    assert tau_schedule(0.99, 0.0) == pytest.approx(0.99)
    assert tau_schedule(0.99, 0.5) == pytest.approx(0.995)
    assert tau_schedule(0.99, 1.0) == pytest.approx(1.0)


def test_byol_online_branch_learns_from_both_views(views: list[Tensor]) -> None:
    method = BYOL(thin_encoder(), hidden_dim=32, dim=16).train()
    inputs = [v.clone().requires_grad_() for v in views]
    method(inputs, torch.arange(6))["loss"].backward()
    assert all(v.grad is not None and v.grad.abs().sum() > 0 for v in inputs)


def test_simsiam_stop_gradient_halves_the_gradient_of_an_identity_predictor(views: list[Tensor]) -> None:
    method = SimSiam(thin_encoder(), dim=16, predictor_dim=8).train()
    method.predictor = nn.Sequential(nn.Identity())
    z1, z2 = (method.projector(method.encoder(v)) for v in views)
    without = torch.autograd.grad(negative_cosine(z1, z2), list(method.encoder.parameters()))
    loss = method(views, torch.arange(6))["loss"]
    with_stop = torch.autograd.grad(loss, list(method.encoder.parameters()))
    for a, b in zip(with_stop, without, strict=True):
        torch.testing.assert_close(a, b / 2, rtol=1e-3, atol=1e-5)


def test_simsiam_gradient_reaches_a_view_only_through_its_own_prediction(views: list[Tensor]) -> None:
    method = SimSiam(thin_encoder(), dim=16, predictor_dim=8).train()
    inputs = [v.clone().requires_grad_() for v in views]
    z1, z2 = (method.projector(method.encoder(v)) for v in inputs)
    p1, p2 = method.predictor(z1), method.predictor(z2)
    expected = torch.autograd.grad((negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2, inputs)
    inputs2 = [v.clone().requires_grad_() for v in views]
    got = torch.autograd.grad(method(inputs2, torch.arange(6))["loss"], inputs2)
    leaking = torch.autograd.grad(_leaking(method, inputs3 := [v.clone().requires_grad_() for v in views]), inputs3)
    for a, b, c in zip(got, expected, leaking, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
        assert (a - c).abs().max() > 1e-5


def _leaking(method: SimSiam, views: list[Tensor]) -> Tensor:
    z1, z2 = (method.projector(method.encoder(v)) for v in views)
    return (negative_cosine(method.predictor(z1), z2) + negative_cosine(method.predictor(z2), z1)) / 2


def test_simsiam_projection_has_mean_zero_and_variance_one(views: list[Tensor]) -> None:
    method = SimSiam(thin_encoder(), dim=16, predictor_dim=8, projector_layers=2).train()
    z = method(views, torch.arange(6))["embedding"]
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(16), atol=5e-2, rtol=0)
    assert method.projector[-1].weight is None
    assert len([m for m in method.projector if isinstance(m, nn.Linear)]) == 2


def test_simsiam_keeps_the_predictors_learning_rate_constant() -> None:
    method = SimSiam(thin_encoder(), dim=16, predictor_dim=8)
    assert list(method.constant_lr()) == [method.predictor]


def test_rotations_are_exact_and_in_the_order_of_their_labels() -> None:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    rotated, labels = rotate_all(images, (0, 90, 180, 270))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(rotated[:2], images)
    torch.testing.assert_close(rotated[2:4], torch.rot90(images, 1, (2, 3)))
    torch.testing.assert_close(rotated[4:6], images.flip(2, 3))
    for k in range(4):  # turning by what is missing to 360 degrees gives the image back
        torch.testing.assert_close(torch.rot90(rotated[2 * k : 2 * k + 2], 4 - k, (2, 3)), images)
    # counter-clockwise: the top right corner goes to the top left
    assert rotated[2, 0, 0, 0] == images[0, 0, 0, -1]


def test_rotation_flips_before_it_rotates(views: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees four rotations of one view, so all four share its crop and its flip."""
    seen: list[Tensor] = []
    method = Rotation(thin_encoder())
    monkeypatch.setattr(method.encoder, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 16))
    method([views[0]], torch.arange(6))
    for k in range(4):
        torch.testing.assert_close(torch.rot90(seen[0][6 * k : 6 * k + 6], -k, (2, 3)), views[0])
    flipped, turned = views[0].flip(3), torch.rot90(views[0], 1, (2, 3))
    # why it matters: a flip after a quarter turn is a turn the other way of a flipped image
    torch.testing.assert_close(turned.flip(3), torch.rot90(flipped, -1, (2, 3)))


def test_methods_are_the_files_of_the_folder() -> None:
    assert {"byol", "simsiam", "rotation"} <= set(list_methods())
    assert all(issubclass(find_method(name), Method) for name in list_methods())
    with pytest.raises(ValueError, match=r"Methods are: .*byol"):
        find_method("bjol")

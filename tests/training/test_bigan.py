"""BiGAN: losses against torch's and closed forms; one backward and one Adam against two optimizers, step by step."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from sslzoo_training.loop import make_optimizer
from sslzoo_training.methods.bigan import BiGAN, Discriminator, Generator, bigan_losses
from sslzoo_training.recipe import Settings
from sslzoo_training.views import View


def build(**more: float) -> BiGAN:
    torch.manual_seed(0)
    encoder = timm.create_model("resnet18", num_classes=0, channels=[4, 8, 8, 16], stem_type="deep", stem_width=4)
    return BiGAN(encoder, **({"z_dim": 6, "side": 16, "width": 4, "generator_width": 4} | more)).train()


def batch(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 32, 32, generator=generator), 2 * torch.rand(8, 6, generator=generator) - 1]


def logits(method: BiGAN, images: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Of real and of fake pairs, everything with its gradient."""
    x, code = interpolate(images, method.side, mode="area"), method.code(method.encoder(images))
    return method.discriminator(x, code), method.discriminator(method.generator(z), z)


def test_losses_are_torchs_binary_cross_entropies_with_labels_and_with_swapped_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = 3 * torch.randn(2, 50, generator=generator)
    one, zero = torch.ones(50), torch.zeros(50)
    d, eg = bigan_losses(real, fake)
    bce = binary_cross_entropy_with_logits
    torch.testing.assert_close(d, (bce(real, one) + bce(fake, zero)) / 2)
    torch.testing.assert_close(eg, (bce(real, zero) + bce(fake, one)) / 2)
    torch.testing.assert_close(bigan_losses(fake, real)[0], eg)  # swapping the pairs is swapping the labels
    assert [loss.item() for loss in bigan_losses(torch.zeros(5), torch.zeros(5))] == pytest.approx([math.log(2)] * 2)


def test_the_resisting_loss_does_not_saturate() -> None:
    """Where D is sure, E and G still get a gradient of about 1 a logit, as the minimax loss would not give them."""
    real, fake = torch.full((4,), 12.0, requires_grad=True), torch.full((4,), -12.0, requires_grad=True)
    d, eg = bigan_losses(real, fake)
    wanted = torch.autograd.grad(eg, [real, fake], retain_graph=True)
    assert [float(g.sum()) for g in wanted] == pytest.approx([0.5, -0.5], abs=1e-4)
    assert all(float(g.abs().sum()) < 1e-4 for g in torch.autograd.grad(-d, [real, fake]))


@pytest.mark.parametrize("counts", [(8, 1, 5, 2), (1, 8, 5, 2)], ids=["other", "equal"])
def test_the_best_discriminator_of_two_discrete_joints_is_their_ratio(counts: tuple[int, ...]) -> None:
    """V(D*, E, G) = -2 ln 2 + 2 JSD(p, q) (Prop. 1, 2), and D's loss here is -V / 2."""
    p, q = torch.tensor(counts) / 16, torch.tensor((1, 8, 5, 2)) / 16
    real, fake = (torch.arange(4).repeat_interleave((16 * share).long()) for share in (p, q))
    found = torch.zeros(4, requires_grad=True)  # a logit for each of the four pairs there are
    optimizer = torch.optim.SGD([found], lr=2.0)
    for _ in range(2000):
        optimizer.zero_grad()
        loss = bigan_losses(found[real], found[fake])[0]
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(found.detach(), (p / q).log(), atol=1e-3, rtol=0)
    jsd = sum(float((x * (2 * x / (p + q)).log()).sum()) for x in (p, q)) / 2
    assert loss.item() == pytest.approx(math.log(2) - jsd, abs=1e-5)


def test_everything_starts_near_ln_2() -> None:
    out = build(side=32, width=16, generator_width=16)(batch(), torch.arange(8))
    assert out["d_loss"].item() == pytest.approx(math.log(2), abs=0.15)
    assert out["eg_loss"].item() == pytest.approx(math.log(2), abs=0.15)
    assert out["loss"].item() == pytest.approx((out["d_loss"] + out["eg_loss"]).item())


def adam(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    matrices, others = ([p for p in module.parameters() if (p.ndim > 1) == yes] for yes in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.Adam(groups, lr=lr, betas=(0.5, 0.999))


def test_one_optimizer_does_what_two_would() -> None:
    method, two = build(), build()
    settings = Settings(optimizer="adam", momentum=0.5, lr=0.01, weight_decay=2.5e-5)
    together = make_optimizer(method, settings)
    ours = [two.discriminator, nn.ModuleList([two.encoder, two.code, two.generator])]
    apart = [adam(part, lr=0.01, weight_decay=2.5e-5) for part in ours]
    for step in range(3):
        together.zero_grad()
        method(batch(step), torch.arange(8))["loss"].backward()
        together.step()

        losses = bigan_losses(*logits(two, *batch(step)))
        grads = [
            torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
            for loss, part in zip(losses, ours, strict=True)
        ]
        for part, values, optimizer in zip(ours, grads, apart, strict=True):
            for parameter, value in zip(part.parameters(), values, strict=True):
                parameter.grad = value
            optimizer.step()
    expected = two.state_dict()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_each_network_gets_the_gradient_of_its_own_loss_only() -> None:
    method = build().double()
    views = [view.double() for view in batch()]
    method(views, torch.arange(8))["loss"].backward()
    d_loss, eg_loss = bigan_losses(*logits(method, *views))
    for part, loss in ((method.discriminator, d_loss), (method.encoder, eg_loss), (method.generator, eg_loss)):
        expected = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
        for parameter, value in zip(part.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, value)


def test_the_encoder_learns_from_real_pairs_and_the_generator_from_fake_ones() -> None:
    method = build()
    real, fake = logits(method, *batch())
    encoder, generator = method.encoder.conv1[0].weight, method.generator.layers[0].weight
    for value, sees, blind in ((real, encoder, generator), (fake, generator, encoder)):
        own, other = torch.autograd.grad(value.square().sum(), [sees, blind], retain_graph=True, allow_unused=True)
        assert own.abs().sum() > 0
        assert other is None


def test_the_discriminators_statistics_move_once_for_each_batch() -> None:
    method, other = build(), build()
    method(batch(), torch.arange(8))
    logits(other, *batch())
    for name, buffer in other.discriminator.named_buffers():
        torch.testing.assert_close(dict(method.discriminator.named_buffers())[name], buffer)
    assert method.discriminator.norms[1].num_batches_tracked == 2
    assert method.generator.layers[1].num_batches_tracked == 1
    assert method.generator.training


def test_codes_are_uniform_and_follow_the_generator() -> None:
    method = build()
    z = method.draw(5000, torch.Generator().manual_seed(0))
    assert z.shape == (5000, 6)
    assert z.min() >= -1
    assert z.max() <= 1
    assert z.mean().abs() < 0.02
    assert z.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    assert torch.equal(z, method.draw(5000, torch.Generator().manual_seed(0)))


def test_the_discriminator_sees_images_and_codes_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    method, images = build(noise=0.5), batch()[0]
    draws = method.draw(8, torch.Generator().manual_seed(0))
    z, on_x, on_z = draws.split([6, 3 * 16**2, 6], dim=1)
    assert torch.equal(z, build().draw(8, torch.Generator().manual_seed(0)))  # the codes are what they were
    assert on_x.std().item() == pytest.approx(0.5, rel=0.05)
    assert on_z.std().item() == pytest.approx(0.5, rel=0.3)
    x, code = interpolate(images, 16, mode="area"), method.code(method.encoder(images))
    expected = (x, code), (method.generator(z), z)
    seen: list[tuple[Tensor, Tensor]] = []
    forward = method.discriminator.forward
    monkeypatch.setattr(method.discriminator, "forward", lambda *pair: seen.append(pair) or forward(*pair))
    method([images, draws], torch.arange(8))
    assert len(seen) == 4  # real and fake, for its own loss and for that of the others
    for number, (image, codes) in enumerate(seen):
        torch.testing.assert_close(image, expected[number % 2][0] + on_x.view(8, 3, 16, 16))
        torch.testing.assert_close(codes, expected[number % 2][1] + on_z)


@pytest.mark.parametrize(("side", "halvings"), [(8, 1), (32, 3), (64, 4)])
def test_images_have_their_side_and_the_range_of_views(side: int, halvings: int) -> None:
    generator, discriminator = Generator(5, side, 4), Discriminator(5, side, 4)
    with torch.no_grad():
        generator.layers[-2].weight.mul_(1e4)  # black and white
        images = generator(2 * torch.rand(16, 5) - 1)
    assert images.shape == (16, 3, side, side)
    pixels = images * torch.tensor(View.std).view(3, 1, 1) + torch.tensor(View.mean).view(3, 1, 1)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.min() < 0.01
    assert pixels.max() > 0.99
    assert len(discriminator.convs) == halvings
    assert discriminator(images, torch.randn(16, 5)).shape == (16,)


def test_other_sides_are_refused() -> None:
    for side in (4, 48, 33):
        with pytest.raises(ValueError, match=f"side = {side}: needs to be 4 times a power of 2"):
            build(side=side)


def test_every_layer_of_the_discriminator_sees_the_code() -> None:
    discriminator = Discriminator(5, 32, 4)
    z = torch.randn(4, 5, requires_grad=True)
    discriminator(torch.randn(4, 3, 32, 32), z).sum().backward()
    for code in discriminator.codes:
        assert code.weight.grad.abs().sum() > 0


def test_the_reconstruction_error_is_one_without_and_small_with_inverse_networks() -> None:
    method = build()
    x, codes = torch.randn(8, 3, 16, 16), torch.randn(8, 6)
    method.generator.forward = lambda z: x  # type: ignore[method-assign]
    assert method._reconstruction(x, codes).item() == 0
    noise = torch.randn(8, 3, 16, 16)
    method.generator.forward = lambda z: noise  # type: ignore[method-assign]
    assert method._reconstruction(x, codes).item() == pytest.approx(1, abs=0.15)


def test_the_published_encoder_is_the_backbone() -> None:
    method = build()
    assert method.encoder_to_publish() is method.encoder
    assert set(dict(method.named_parameters())) > {f"encoder.{name}" for name, _ in method.encoder.named_parameters()}

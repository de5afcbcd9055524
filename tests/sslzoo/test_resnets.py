"""ResNets as their authors built them: TensorFlow's padding, a last stage of stride 1, doubled widths."""

from pathlib import Path

import published
import pytest
import timm
import torch

import sslzoo
from sslzoo.encoder import build_network
from sslzoo.resnets import adapt


def small(**block: object) -> sslzoo.Encoder:
    encoder = sslzoo.create("resnet18", seed=0, image_size=64, **published.THIN_ARGS)
    return sslzoo.Encoder(encoder.model, {**encoder.config, "sslzoo": {**encoder.config["sslzoo"], **block}})


def of_edges() -> sslzoo.Encoder:
    config = small().config
    config["model_args"]["in_chans"], config["pretrained_cfg"]["first_conv"] = 2, None
    network = build_network(config["architecture"], config["pretrained_cfg"], config["model_args"], seed=0)
    return sslzoo.Encoder(network, {**config, "sslzoo": {**config["sslzoo"], "sobel": True}})


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (70, 51)])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_padding_is_tensorflows(size: tuple[int, int], library: str) -> None:
    expected = published.network()
    net = (
        timm.create_model("resnet18", num_classes=0, **published.THIN_ARGS)
        if library == "timm"
        else published.network(seed=1)
    )
    net.load_state_dict(expected.state_dict())
    parameters = dict(net.named_parameters())
    for _ in range(2):  # again changes nothing
        adapt(net.eval(), padding="same")
    assert all(parameters[name] is parameter for name, parameter in net.named_parameters())
    batch = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(net(batch), published.pad_same(expected)(batch), rtol=1e-5, atol=1e-5)


def test_padding_matters_at_even_sizes_only() -> None:
    plain, same = small(), small(padding="same")
    same.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for size, equal in ((64, False), (65, True), (97, True), (96, False)):
            batch = torch.randn(1, 3, size, size)
            assert torch.allclose(plain(batch), same(batch), atol=1e-5) == equal


def test_what_is_saved_dilated_and_copied_keeps_its_padding_and_stride(tmp_path: Path) -> None:
    for encoder in (small(padding="same"), small(last_stride=1), of_edges()):
        batch = torch.randn(1, 3, 64, 64)
        encoder.save_pretrained(tmp_path, half=False)
        with torch.no_grad():
            assert torch.equal(sslzoo.load(tmp_path)(batch), encoder(batch))
            assert encoder.with_output_stride(8).feature_maps(batch)[-1].shape[-1] == 8
            classifier = sslzoo.classifier(str(tmp_path), num_classes=2)
            assert torch.equal(classifier.encoder(batch), encoder(batch))


def test_a_last_stage_of_stride_1_keeps_its_resolution() -> None:
    encoder = small(last_stride=1)
    assert encoder.reductions == [2, 4, 8, 16, 16]
    maps = encoder.feature_maps(torch.randn(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 4]


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_edges_are_seen_and_nothing_trains_what_sees_them(library: str) -> None:
    net = of_edges().model if library == "timm" else published.network(in_channels=2)
    names = set(dict(net.named_parameters()))
    for _ in range(2):  # again changes nothing
        adapt(net, sobel=True)
    assert set(dict(net.named_parameters())) == names == set(net.state_dict()) & names
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    net.conv1.weight.data.zero_()
    net.conv1.weight.data[:2, :, 3, 3] = torch.eye(2)
    seen = net.conv1(ramp)[:, :2, 1:-1, 1:-1]
    assert torch.equal(seen[:, 0], torch.full_like(seen[:, 0], -8.0))  # brighter to the right, by 1 a pixel
    assert torch.equal(seen[:, 1], torch.zeros_like(seen[:, 1]))


def test_a_pre_activation_resnet_without_its_last_norm_is_timms_but_for_that() -> None:
    with torch.device("meta"):
        bare, whole = (timm.create_model(name, num_classes=0) for name in ("resnetv2_50bare", "resnetv2_50"))
    shapes, others = ({k: v.shape for k, v in net.state_dict().items()} for net in (bare, whole))
    assert {k: v for k, v in others.items() if not k.startswith("norm.")} == shapes
    assert bare.feature_info == whole.feature_info


def test_other_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="padding must be 'same'"):
        small(padding="valid")
    with pytest.raises(ValueError, match="both change the first convolution"):
        small(padding="same", sobel=True)


def test_the_doubled_resnet200_is_twice_as_wide_everywhere() -> None:
    with torch.device("meta"):
        wide, plain = (timm.create_model(name, num_classes=0) for name in ("resnet200w2", "resnet200"))
    shapes = {name: tuple(tensor.shape) for name, tensor in wide.state_dict().items()}
    for name, tensor in plain.state_dict().items():
        doubled = [2 * n if axis < 2 else n for axis, n in enumerate(tensor.shape)]
        if name == "conv1.weight":
            doubled[1] = 3
        assert shapes.pop(name) == tuple(doubled), name
    assert not shapes
    assert [stage["num_chs"] for stage in wide.feature_info] == [128, 512, 1024, 2048, 4096]

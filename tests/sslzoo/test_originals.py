"""The authors' encoders by zoo id: published structures with random weights, fetched from 127.0.0.1, equal features."""

import hashlib
import json
import shutil
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import published
import pytest
import timm
import torch
from file_server import FileServer
from huggingface_hub import constants
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from typer.testing import CliRunner

import sslzoo
from sslzoo import conversion, originals, upstream, weights, zoo
from sslzoo.cli import app
from sslzoo.downloads import DownloadError
from sslzoo.weights import LicenceError, WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:The weights of")
SIMSIAM = "simsiam-resnet50-imagenet"
UPSTREAM = [model for model in zoo.list_models() if model.upstream]
# a model of each family and form, what writes its file, and what its network is
MODELS: list[tuple[str, Callable[[nn.Module], bytes], dict[str, Any]]] = [
    ("byol-resnet50-imagenet", published.byol, {}),
    (SIMSIAM, published.simsiam, {}),
    ("moco2-resnet50-imagenet", published.moco, {}),
    ("sela-resnet18-imagenet", published.sela, {}),
    ("sela-resnetv2_50bare-imagenet", published.sela_preact, {"arch": published.PREACT}),
    ("deepcluster2-resnet50-imagenet", published.swav, {}),
    ("deepcluster-vgg16_bn-imagenet", published.deepcluster, {"arch": "vgg11_bn", "in_channels": 2}),
    ("deepcluster-resnet50-imagenet", published.openmmlab_sobel, {"in_channels": 2}),
    ("infomin-resnet50-imagenet", published.pycontrast, {}),
    ("jigsaw-resnet50-imagenet", published.vissl, {}),
    ("rotation-resnet50-imagenet22k", published.vissl_converted, {}),
    ("byol-resnet200w2-imagenet", published.vissl_bare, {}),
    ("colorization-resnet50-imagenet", published.vissl_converted, {"in_channels": 1, "last_stride": 1}),
    ("context-resnet50-imagenet", published.openmmlab, {}),
]
# what libraries that do not know this one lack, or would build otherwise
NOT_AS_OTHERS = ("byol-resnet50", "colorization-resnet50", "sela-resnetv2_50bare", "deepcluster-vgg16_bn")


@pytest.fixture(autouse=True)
def _licences_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_told", {model.id for model in UPSTREAM})
    monkeypatch.delenv(weights.COMMERCIAL, raising=False)


def reference(net: nn.Module, info: zoo.ModelInfo) -> nn.Module:
    if info.upstream and info.upstream.sobel:
        return nn.Sequential(published.sobel(), net)
    return published.pad_same(net) if info.upstream and info.upstream.padding else net


def images(info: zoo.ModelInfo, size: int) -> Tensor:
    return torch.randn(1, info.input_size[0], size, size + 6, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(("id_", "write", "shape"), MODELS, ids=[f"{m[0]}-{m[1].__name__}" for m in MODELS])
def test_features_are_those_of_the_published_network(
    id_: str, write: Any, shape: dict[str, Any], published_at: Callable[..., None], tmp_path: Path
) -> None:
    net = published.network(**shape)
    published_at({id_: write(net)})
    encoder = sslzoo.load(id_)
    net = reference(net, zoo.info(id_))
    for size in (224, 97):
        batch = images(zoo.info(id_), size)
        with torch.no_grad():
            expected, found = net(batch), encoder(batch)
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-7
    encoder.save_pretrained(tmp_path / "saved")
    assert torch.equal(sslzoo.load(tmp_path / "saved")(batch), found)


@pytest.mark.parametrize("id_", [f"{name}-imagenet" for name in NOT_AS_OTHERS])
def test_the_code_of_its_card_gives_its_features(
    id_: str,
    published_at: Callable[..., None],
    run_snippets: Callable[[str, Any], set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, write, shape = next(model for model in MODELS if model[0] == id_)
    published_at({id_: write(published.network(**shape))})
    monkeypatch.chdir(tmp_path)
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save("photo.jpg")
    libraries = run_snippets((weights.locate(id_) / "README.md").read_text(), sslzoo.load(id_))
    assert libraries == {"sslzoo", "timm"}  # others would give features of another network


def test_every_form_of_every_family_is_tested() -> None:
    tested = {file.family for id_, _, _ in MODELS for file in zoo.info(id_).upstream.files}
    assert tested == set(upstream.families()) == {file.family for model in UPSTREAM for file in model.upstream.files}


def kind(info: zoo.ModelInfo) -> tuple[object, ...]:
    return info.upstream.files[0].family, info.upstream.last_stride, info.upstream.sobel


@pytest.mark.slow
@pytest.mark.parametrize("info", UPSTREAM, ids=lambda info: info.id)
def test_every_model_at_its_full_size(info: zoo.ModelInfo, published_at: Callable[..., None]) -> None:
    if info.arch == "resnet200w2":
        pytest.skip("torchvision has no such network: see test_resnets.py")
    (write, shape), *_ = [(write, shape) for id_, write, shape in MODELS if kind(zoo.info(id_)) == kind(info)]
    net = published.network(**{**shape, "arch": info.arch})
    published_at({info.id: write(net)}, whole=True)
    encoder, net = sslzoo.load(info.id), reference(net, info)
    for size in (224, 193):
        batch = images(info, size)
        with torch.no_grad():
            expected = net(batch)
            assert (encoder(batch) - expected).abs().max() <= 1e-6 * expected.abs().max()


@cache
def tensors_of(arch: str, channels: int, sobel: bool) -> dict[str, Tensor]:
    wanted = arch, channels, sobel
    (info, *_) = [m for m in UPSTREAM if (m.arch, m.input_size[0], m.upstream.sobel) == wanted]
    return conversion.expected(conversion.make_config(info))


@pytest.mark.parametrize("info", UPSTREAM, ids=lambda info: info.id)
def test_the_table_says_what_the_network_is(info: zoo.ModelInfo) -> None:
    config = conversion.make_config(info)
    tensors = tensors_of(info.arch, info.input_size[0], info.upstream.sobel)
    running = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(t.numel() for name, t in tensors.items() if not name.endswith(running)) == info.params
    assert config["num_features"] == info.num_features
    size = sum(t.numel() * t.itemsize for t in tensors.values())
    assert size < info.bytes < size + 200 * len(tensors)
    assert config["pretrained_cfg"]["input_size"] == list(info.input_size)
    assert len(info.upstream.mean) == len(info.upstream.std) == info.input_size[0]
    for file in info.upstream.files:
        assert file.url.startswith(("https://", "http://"))
        kind, _, digits = file.digest.partition(":")
        assert (kind, len(digits)) in (("", 0), ("sha256", 8), ("md5", 8))


def test_no_two_models_share_a_file() -> None:
    urls = [file.url for model in UPSTREAM for file in model.upstream.files]
    assert len(set(urls)) == len(urls)


# --- once converted


@pytest.fixture
def simsiam(web: FileServer, published_at: Callable[..., None]) -> nn.Module:
    """SimSiam's encoder, on the server."""
    net = published.network()
    published_at({SIMSIAM: published.simsiam(net)})
    return net


def test_it_is_downloaded_and_converted_once(
    simsiam: nn.Module, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = weights.locate(SIMSIAM)
    assert len(web.log) == 1
    assert not list((originals.home() / "downloads").iterdir())  # three times the encoder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.locate(SIMSIAM) == folder
    assert len(web.log) == 1
    record = json.loads((originals.home() / "records" / f"{SIMSIAM}.json").read_text())
    ((url, digest),) = record["files"].items()
    assert url.endswith("/100ep/pretrain/checkpoint_0099.pth.tar")
    assert digest == hashlib.sha256(web.files[url.removeprefix(f"{web.url}/")]).hexdigest()


def test_what_is_saved_tells_where_it_is_from_and_what_was_dropped(simsiam: nn.Module) -> None:
    folder = weights.locate(SIMSIAM)
    block = weights.read_config(folder)["sslzoo"]
    assert (block["licence"], block["method"], block["dataset"]) == ("cc-by-nc-4.0", "simsiam", "imagenet")
    assert block["upstream"]["dropped"] == [
        "module.encoder.fc.0.weight", "module.encoder.fc.0.bias", "module.encoder.fc.1.num_batches_tracked",
        "module.predictor.0.weight", "module.predictor.0.bias",
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert "68.1 % top-1 on ImageNet" in card
    assert "not measured here" in card
    assert "model-index" not in card
    assert "github.com/facebookresearch/simsiam" in card


def test_a_changed_encoder_is_noticed(simsiam: nn.Module) -> None:
    path = weights.locate(SIMSIAM) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="has changed since it was converted"):
        sslzoo.load(SIMSIAM)
    result = CliRunner().invoke(app, ["verify", SIMSIAM])
    assert result.exit_code == 1
    assert "changed" in result.output


def test_verify(simsiam: nn.Module, web: FileServer) -> None:
    assert [verdict.state for verdict in originals.verify([zoo.info(SIMSIAM)])] == ["absent"]
    assert web.log == []
    weights.locate(SIMSIAM)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0, result.output
    states = dict(line.split()[:2] for line in result.output.splitlines())
    assert states.pop(SIMSIAM) == states["byol-resnet18quarter-cifar10"] == "ok"
    assert states["byol-resnet50-imagenet"] == "absent"
    assert len(states) + 1 == len(zoo.list_models())


def test_a_file_is_held_to_the_digest_of_its_first_use(simsiam: nn.Module, web: FileServer) -> None:
    folder = weights.locate(SIMSIAM)
    (path,) = [name for name in web.files if name.endswith("100ep/pretrain/checkpoint_0099.pth.tar")]
    web.files[path] = published.simsiam(published.network(seed=1))
    for name in (weights.CONFIG, weights.WEIGHTS):
        (folder / name).unlink()
    with pytest.raises(WeightsError, match="is not what it was at its first use on this machine"):
        sslzoo.load(SIMSIAM)
    assert not (folder / weights.WEIGHTS).exists()
    (originals.home() / "records" / f"{SIMSIAM}.json").unlink()
    sslzoo.load(SIMSIAM)


@pytest.mark.parametrize(("kind", "good"), [("sha256", True), ("md5", True), ("sha256", False), ("md5", False)])
def test_a_known_digest_is_compared(
    simsiam: nn.Module, web: FileServer, kind: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = zoo.info(SIMSIAM)
    (content,) = {web.files[name] for name in web.files}
    digest = hashlib.new(kind, content if good else b"").hexdigest()[:8]
    table = zoo.TABLE.read_text().replace(
        f'"{info.upstream.files[0].url}"', f'"{info.upstream.files[0].url}", digest = "{kind}:{digest}"'
    )
    zoo.TABLE.with_name("digests.toml").write_text(table)
    monkeypatch.setattr(zoo, "TABLE", zoo.TABLE.with_name("digests.toml"))
    if good:
        sslzoo.load(SIMSIAM)
        return
    with pytest.raises(WeightsError, match=f"what its authors published begins with {digest}"):
        sslzoo.load(SIMSIAM)
    assert not list((originals.home() / "downloads").iterdir())  # another try shall not find it again


def test_the_next_mirror_is_tried(web: FileServer, published_at: Callable[..., None]) -> None:
    id_ = "deepcluster2-resnet50-imagenet"
    published_at({id_: published.swav(published.network())})
    first, second = (file.url.removeprefix(f"{web.url}/") for file in zoo.info(id_).upstream.files)
    del web.files[first]
    sslzoo.load(id_)
    assert web.log == [first, second]


def test_no_network_says_what_to_do(simsiam: nn.Module, web: FileServer) -> None:
    web.files.clear()
    with pytest.raises(DownloadError) as caught:
        sslzoo.load(SIMSIAM)
    message = str(caught.value)
    assert f"{SIMSIAM} is not on this machine" in message
    assert "the server answers 404" in message
    assert f"sslzoo fetch {SIMSIAM} --from-file FILE" in message


def test_processes_that_want_one_model_share_a_download(simsiam: nn.Module, web: FileServer) -> None:
    threads = [threading.Thread(target=weights.locate, args=(SIMSIAM,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(web.log) == 1
    weights.locate(SIMSIAM)


# --- a file in hand


def test_a_file_in_hand_needs_no_download(simsiam: nn.Module, web: FileServer, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_0099.pth.tar"
    file.write_bytes(published.simsiam(simsiam))
    result = CliRunner().invoke(app, ["fetch", SIMSIAM, "--from-file", str(file)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(originals.folder_of(zoo.info(SIMSIAM)))
    sslzoo.load(SIMSIAM)
    assert web.log == []
    assert file.is_file()
    missing = CliRunner().invoke(app, ["fetch", f"{SIMSIAM}-batch256", "--from-file", str(tmp_path / "gone")])
    assert missing.exit_code == 1
    assert "gone" in missing.output


def test_a_file_out_of_an_archive_will_do_too(
    published_at: Callable[..., None], web: FileServer, tmp_path: Path
) -> None:
    id_, net = "sela-resnetv2_50bare-imagenet", published.network(published.PREACT)
    published_at({})
    file = tmp_path / "resnet-10x3k.pth"
    for content in (published.sela_member(net), published.saved({**published.encoder(net)})):  # of an old torch, a new
        file.write_bytes(content)
        originals.fetch(zoo.info(id_), from_file=file)
        batch = images(zoo.info(id_), 64)
        with torch.no_grad():
            assert torch.allclose(sslzoo.load(id_)(batch), net(batch), rtol=1e-6, atol=1e-6)
        shutil.rmtree(originals.home())
    assert web.log == []


def test_the_download_is_kept_when_asked(simsiam: nn.Module, web: FileServer) -> None:
    assert CliRunner().invoke(app, ["fetch", SIMSIAM, "--keep"]).exit_code == 0
    (kept,) = (originals.home() / "downloads").iterdir()
    assert kept.name.endswith("-checkpoint_0099.pth.tar")


def test_convert_writes_a_folder(simsiam: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "any-name.pth"
    file.write_bytes(published.simsiam(simsiam))
    result = CliRunner().invoke(app, ["convert", str(file), "--as", SIMSIAM, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Not taken over: module.encoder.fc.0.weight" in result.output
    batch = images(zoo.info(SIMSIAM), 64)
    with torch.no_grad():
        assert torch.allclose(sslzoo.load(tmp_path / "out")(batch), simsiam(batch), rtol=1e-6, atol=1e-6)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.allclose(model(batch), simsiam(batch), rtol=1e-6, atol=1e-6)


def test_a_model_of_this_project_has_no_other_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "byol-resnet18quarter-cifar10"])
    assert result.exit_code == 1
    assert "was trained by this project" in result.output


# --- licences


def test_a_licence_is_told_once(simsiam: nn.Module, tmp_path: Path) -> None:
    weights._told.clear()
    with pytest.warns(UserWarning, match=f"weights of {SIMSIAM} are under cc-by-nc-4.0, which forbids commercial use"):
        encoder = sslzoo.load(SIMSIAM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sslzoo.load(SIMSIAM)
    encoder.save_pretrained(tmp_path / "mine")
    with pytest.warns(UserWarning, match="mine are under cc-by-nc-4.0"):
        sslzoo.load(tmp_path / "mine")


def test_a_licence_can_be_refused_before_anything_is_downloaded(
    simsiam: nn.Module, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LicenceError, match="forbids commercial use, and allow_noncommercial is False"):
        sslzoo.load(SIMSIAM, allow_noncommercial=False)
    monkeypatch.setenv("SSLZOO_COMMERCIAL", "1")
    with pytest.raises(LicenceError, match="SSLZOO_COMMERCIAL is set"):
        sslzoo.load(SIMSIAM)
    assert CliRunner().invoke(app, ["fetch", SIMSIAM]).exit_code == 1
    assert web.log == []
    sslzoo.load("byol-resnet18quarter-cifar10", allow_noncommercial=False)
    monkeypatch.setenv("SSLZOO_COMMERCIAL", "0")
    sslzoo.load(SIMSIAM).save_pretrained(tmp_path / "mine")
    with pytest.raises(LicenceError, match="allow_noncommercial is False"):
        sslzoo.load(tmp_path / "mine", allow_noncommercial=False)
    sslzoo.classifier(SIMSIAM, num_classes=2).save_pretrained(tmp_path / "tuned")
    sslzoo.load_model(tmp_path / "tuned")
    monkeypatch.setenv("SSLZOO_COMMERCIAL", "1")
    with pytest.raises(LicenceError, match="SSLZOO_COMMERCIAL is set"):
        sslzoo.load_model(tmp_path / "tuned")

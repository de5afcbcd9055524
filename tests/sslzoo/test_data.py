import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw
from sklearn.datasets import load_sample_images

from sslzoo.data import (
    EmptyDatasetError,
    ImageSet,
    UnreadableImageError,
    open_images,
    read_image,
    to_image,
    unreadable,
)
from sslzoo.images import image_size, read_sized

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((80, 60))


def save_colour(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# One image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_camera_orientation_is_applied_once(tmp_path: Path, photo: Image.Image, orientation: int, suffix: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    as_taken = photo.transpose(undo[orientation]) if orientation > 1 else photo
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo{suffix}"
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    as_taken.save(path, exif=exif.tobytes(), **options)
    image = read_image(path)
    assert image.size == photo.size
    assert np.abs(pixels(image) - pixels(photo)).mean() < (3 if suffix == ".jpg" else 1e-9)
    assert np.array_equal(pixels(to_image(image)), pixels(image))
    assert image_size(path) == (photo.height, photo.width)
    with Image.open(path) as opened:
        assert np.array_equal(pixels(to_image(opened)), pixels(image))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_image(tmp_path / "a.jpg").size == photo.size
    assert image_size(tmp_path / "a.jpg") == (photo.height, photo.width)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "HSV"])
def test_modes_become_rgb(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    source = photo.convert(mode)
    assert np.array_equal(pixels(to_image(source)), pixels(source.convert("RGB")))
    if mode in ("1", "L", "P", "RGB"):
        source.save(tmp_path / "a.png")
        assert np.array_equal(pixels(read_image(tmp_path / "a.png")), pixels(source.convert("RGB")))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate([0, 51, 255, 0]):
        rgba.putpixel((x, 0), (*RED, alpha))
    rgba.save(tmp_path / "rgba.png")
    expected = [WHITE, (255, 204, 204), RED, WHITE]
    assert pixels(read_image(tmp_path / "rgba.png"))[0].tolist() == [list(c) for c in expected]

    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (0, 255))
    grey.save(tmp_path / "la.png")
    assert pixels(read_image(tmp_path / "la.png"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparent_palette_entry_is_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / f"p{suffix}", transparency=0)
    assert pixels(read_image(tmp_path / f"p{suffix}"))[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_transparent_colour_of_grey_and_rgb_png_is_white(tmp_path: Path) -> None:
    for mode, clear, solid in [("L", 7, 90), ("RGB", (1, 2, 3), (40, 50, 60))]:
        image = Image.new(mode, (2, 1), clear)
        image.putpixel((1, 0), solid)
        image.save(tmp_path / "t.png", transparency=clear)
        row = pixels(read_image(tmp_path / "t.png"))[0]
        assert row[0].tolist() == [255, 255, 255]
        assert row[1].tolist() == list(np.broadcast_to(solid, 3))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 32896, 65535]], dtype=np.uint16)
    expected = [0, 1, 1, 128, 255]
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    in_32_bits = Image.fromarray(values.astype(np.int32))  # how older Pillow opens a 16-bit PNG
    for image in [
        read_image(tmp_path / "a.png"),
        read_image(tmp_path / "a.tif"),
        to_image(big_endian),
        to_image(in_32_bits),
    ]:
        assert pixels(image)[0].tolist() == [[v] * 3 for v in expected]


def test_float_files_are_scaled(tmp_path: Path) -> None:
    for values, expected in [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.2, 0.2, 0.4], [51, 51, 102]),  # within [0, 1]: not stretched
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([3.0, 3.0, 3.0], [0, 0, 0]),
    ]:
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "f.tif")
        assert pixels(read_image(tmp_path / "f.tif"))[0, :, 0].tolist() == expected
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableImageError, match=r"f\.tif: .*NaN"):
        read_image(tmp_path / "f.tif")


def test_cmyk_jpeg_has_its_colours(tmp_path: Path, photo: Image.Image) -> None:
    photo.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()  # whose CMYK is stored inverted
    assert np.abs(pixels(read_image(tmp_path / "a.jpg")) - pixels(photo)).mean() < 4


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in [RED, (0, 0, 255)]]
    for name in ["a.gif", "a.webp", "a.png", "a.tif"]:
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {})
        )
        assert pixels(read_image(tmp_path / name))[0, 0].tolist() == list(RED)


def save_bomb(path: Path) -> None:
    """A small PNG whose header claims 60,000 x 60,000 pixels."""
    Image.new("RGB", (1, 1)).save(path)
    png = bytearray(path.read_bytes())
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    path.write_bytes(png)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".tif", ".webp"])
def test_truncated_files_are_unreadable(tmp_path: Path, photo: Image.Image, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    photo.save(path)
    whole = path.read_bytes()
    for keep in [1, 10, len(whole) // 3, len(whole) * 2 // 3]:
        path.write_bytes(whole[:keep])
        with pytest.raises(UnreadableImageError, match=f"a{suffix}: ."):
            read_image(path)


def test_what_is_no_image_is_unreadable_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    save_bomb(tmp_path / "bomb.png")
    for name, reason in [
        ("empty.png", "the file is empty"),
        ("text.jpg", "not an image that Pillow can read"),
        ("missing.png", "No such file"),
        ("folder.png", "directory"),
        ("bomb.png", "exceeds limit"),
    ]:
        with pytest.raises(UnreadableImageError) as caught:
            read_image(tmp_path / name)
        assert caught.value.name == str(tmp_path / name)
        assert reason in caught.value.reason
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(UnreadableImageError, match="no pixels"):
        to_image(Image.new("RGB", (0, 5)))


def test_reduced_decoding_keeps_the_true_size(tmp_path: Path) -> None:
    photo = Image.fromarray(load_sample_images().images[0])  # 640 x 427
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(tmp_path / "a.jpg", quality=95, exif=exif)
    image, size = read_sized(tmp_path / "a.jpg", min_size=100)
    assert size == (640, 427)
    assert image.size == (107, 160)
    whole = read_image(tmp_path / "a.jpg")
    assert whole.size == (427, 640)
    assert np.abs(pixels(image) - pixels(whole.resize(image.size, Image.Resampling.BOX))).mean() < 4
    assert read_sized(tmp_path / "a.jpg", min_size=500)[0].size == (427, 640)


def test_arrays_and_tensors_of_every_layout(photo: Image.Image) -> None:
    rgb = np.asarray(photo)
    expected = pixels(photo)
    floats = rgb / np.float32(255)
    for same in [
        rgb,
        rgb.transpose(2, 0, 1),
        rgb.astype(np.uint16) * np.uint16(257),
        floats,
        floats.astype(np.float64) + 1e-9,
        torch.from_numpy(rgb.copy()),
        torch.from_numpy(floats).permute(2, 0, 1),
        np.concatenate([rgb, np.full_like(rgb[:, :, :1], 255)], axis=2),
    ]:
        assert np.array_equal(pixels(to_image(same)), expected)
    assert np.abs(pixels(to_image(torch.from_numpy(floats).bfloat16().permute(2, 0, 1))) - expected).max() <= 1
    for grey in [rgb[:, :, 0], rgb[:, :, :1], rgb[None, :, :, 0]]:
        assert np.array_equal(pixels(to_image(grey)), np.repeat(expected[:, :, :1], 3, axis=2))
    assert pixels(to_image(np.array([[True, False]])))[0].tolist() == [[255] * 3, [0] * 3]
    tiny = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)  # fits both orders: a tensor is (C, H, W)
    assert np.array_equal(pixels(to_image(tiny)), tiny.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.zeros((4, 4), np.int64), TypeError, "astype"),
        (np.full((4, 4), 16.0), ValueError, r"from 16 to 16.*Divide"),
        (np.full((4, 4), -1.0), ValueError, "mean and std"),
        (np.zeros((5, 5, 2), np.uint8), ValueError, r"got \(5, 5, 2\)"),
        (np.zeros(16, np.uint8), ValueError, r"got \(16,\)"),
        (np.full((4, 4), np.nan), UnreadableImageError, "NaN"),
        (np.zeros((0, 4), np.uint8), UnreadableImageError, "no pixels"),
        ("a.png", TypeError, "got str"),
    ],
)
def test_arrays_that_are_no_images_say_what_to_do(array: np.ndarray, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_image(array)


# Sets of images


def test_natural_order_is_that_of_letters_and_values(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = {"".join(random.choice(list("aB1209-_ "), random.integers(1, 9))) for _ in range(400)}
    names |= {"007", "07", "7", "x0", "x00", "x", "x1y", "x1", "9" * 30, "1" + "0" * 29, "ä2", "Ä10"}
    for name in names:
        (tmp_path / f"{name}.png").touch()

    def parts(name: str) -> tuple[list[str | int], str]:
        cut = re.split(r"([0-9]+)", name.casefold())
        return [int(part) if i % 2 else part for i, part in enumerate(cut)], name

    written = [f"{name}.png" for name in names if not name.startswith(".")]
    assert open_images(tmp_path).names == sorted(written, key=parts)


def test_flat_folder_in_natural_order_without_labels(tmp_path: Path) -> None:
    for name in ["10.png", "9.JPG", "b2.png", "B10.png", "a.jpeg"]:
        save_colour(tmp_path / name)
    for name in ["notes.txt", ".hidden.png", "README"]:
        (tmp_path / name).write_text("x")
    save_colour(tmp_path / ".cache" / "thumb.png")
    images = open_images(tmp_path)
    assert images.names == ["9.JPG", "10.png", "a.jpeg", "b2.png", "B10.png"]
    assert images.ignored == [".hidden.png", "notes.txt", "README"]
    assert images.labels is None
    assert images.classes is None
    assert images.root == tmp_path
    assert len(images) == 5
    assert images[0].size == (8, 6)
    assert images.size(0) == (6, 8)


def test_image_folder_has_classes_and_any_depth_below_them(tmp_path: Path) -> None:
    for name in ["class10/1.png", "class2/deep/deeper/2.png", "class2/10.png", "class2/9.png"]:
        save_colour(tmp_path / name)
    (tmp_path / "empty").mkdir()
    images = open_images(str(tmp_path))
    assert images.classes == ["class2", "class10"]
    assert images.names == ["class2/9.png", "class2/10.png", "class2/deep/deeper/2.png", "class10/1.png"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1]
    assert images.labels.dtype == np.int64
    assert open_images(tmp_path, labels=[5, 5, 5, 7]).classes is None


def test_one_class_is_legal_and_images_beside_folders_mean_no_classes(tmp_path: Path) -> None:
    save_colour(tmp_path / "cats" / "1.png")
    assert open_images(tmp_path).classes == ["cats"]
    save_colour(tmp_path / "2.png")
    mixed = open_images(tmp_path)
    assert mixed.names == ["2.png", "cats/1.png"]
    assert mixed.labels is None


def test_splits_are_not_classes(tmp_path: Path) -> None:
    for name in ["train/cat/1.png", "test/cat/2.png"]:
        save_colour(tmp_path / name)
    with pytest.raises(ValueError, match=r"splits, not classes: test, train\. Pass .*train\."):
        open_images(tmp_path)
    assert open_images(tmp_path / "train").classes == ["cat"]
    save_colour(tmp_path / "toys" / "3.png")
    assert open_images(tmp_path).classes == ["test", "toys", "train"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save_colour(tmp_path / "data" / "cat" / "1.png")
    save_colour(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    assert open_images(tmp_path / "data").names == ["cat/1.png", "dog/2.png"]


def test_one_image_file(tmp_path: Path) -> None:
    images = open_images(save_colour(tmp_path / "a.png"))
    assert images.names == ["a.png"]
    assert pixels(images[0])[0, 0].tolist() == list(RED)
    assert open_images(images[0]).names == ["000000"]


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match=r"No images in .*\.jpg"):
        open_images(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(EmptyDatasetError, match=r"found 1 other files \(a\.txt"):
        open_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a folder"):
        open_images(tmp_path / "a.txt")
    for empty in [[], np.zeros((0, 8, 8), np.uint8)]:
        with pytest.raises(EmptyDatasetError):
            open_images(empty)
    with pytest.raises(TypeError, match="from int"):
        open_images(3)
    with pytest.raises(TypeError, match="Item 1 is int"):
        open_images([np.zeros((2, 2), np.uint8), 7])


def test_arrays(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", rgb)
    np.save(tmp_path / "chw.npy", rgb.transpose(0, 3, 1, 2))
    for source in [
        rgb,
        rgb.transpose(0, 3, 1, 2),
        tmp_path / "a.npy",
        tmp_path / "chw.npy",
        torch.from_numpy(rgb).movedim(3, 1),
    ]:
        images = open_images(source)
        assert len(images) == 12
        assert images.names[11] == "000011"
        assert images.size(3) == (8, 6)
        assert np.array_equal(pixels(images[3]), rgb[3])
        stacked = images.uint8_array()
        assert stacked is not None
        assert np.array_equal(stacked, rgb.transpose(0, 3, 1, 2))
    assert len(open_images(rgb[0])) == 1  # one (H, W, C) image
    for three in [rgb[0].transpose(2, 0, 1), rgb[:3, :, :, 0], torch.from_numpy(rgb[:3, :, :, 0])]:
        with pytest.raises(ValueError, match="may be one"):
            open_images(three)
    assert len(open_images(torch.from_numpy(rgb[:4, :, :, 0]))) == 4
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        open_images(rgb.reshape(12, -1))
    with pytest.raises(ValueError, match="no pixels"):
        open_images(rgb[:, :0])


def test_npy_is_memory_mapped_and_pickles_small(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((200, 32, 32, 3), np.uint8))
    images = open_images(tmp_path / "a.npy").subset([7, 3])
    pickled = pickle.dumps(images)
    assert len(pickled) < 5_000
    assert pickle.loads(pickled)[1].size == (32, 32)


@pytest.mark.parametrize("key", ["images", "x", "X", "data"])
@pytest.mark.parametrize("label_key", ["labels", "y", "targets"])
def test_npz(tmp_path: Path, key: str, label_key: str) -> None:
    grey = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    np.savez(tmp_path / "a.npz", **{key: grey, label_key: np.array([[3], [1], [4], [1], [5]])})
    images = open_images(tmp_path / "a.npz")
    assert np.array_equal(pixels(images[2])[:, :, 1], grey[2])
    assert images.labels is not None
    assert images.labels.tolist() == [3, 1, 4, 1, 5]


def test_npz_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"looked for the keys images.*x_train"):
        open_images(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8), np.uint8), y=[0])
    with pytest.raises(ValueError, match=r"Expected 2 labels.*\(1,\)"):
        open_images(tmp_path / "a.npz")
    ragged = np.empty(2, dtype=object)
    np.savez(tmp_path / "a.npz", images=ragged)
    np.save(tmp_path / "a.npy", ragged)
    for name in ["a.npz", "a.npy"]:
        with pytest.raises(ValueError, match=rf"{name}.*np\.stack"):
            open_images(tmp_path / name)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "b.npy").write_bytes(b"")
    for name in ["b.npz", "b.npy"]:
        with pytest.raises(ValueError, match=name):
            open_images(tmp_path / name)


def test_lists_mix_paths_and_images(tmp_path: Path, photo: Image.Image) -> None:
    path = save_colour(tmp_path / "b.png")
    bad = tmp_path / "bad.png"
    bad.touch()
    images = open_images(
        [path, str(bad), photo, np.asarray(photo), torch.zeros(3, 4, 4)], labels=["dog", "cat", "dog", "cat10", "cat9"]
    )
    assert images.names == [str(path), str(bad), "000002", "000003", "000004"]
    assert images.classes == ["cat", "cat9", "cat10", "dog"]
    assert images.labels is not None
    assert images.labels.tolist() == [3, 0, 3, 2, 1]
    assert np.array_equal(pixels(images[2]), pixels(images[3]))
    assert [images.size(i) for i in (0, 2, 4)] == [(6, 8), (60, 80), (4, 4)]
    for read in [images.__getitem__, images.size]:
        with pytest.raises(UnreadableImageError, match=r"bad\.png: the file is empty"):
            read(1)


def test_labels_must_fit(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="Expected 2 labels"):
        open_images([photo, photo], labels=[1])
    with pytest.raises(TypeError, match="float64"):
        open_images([photo, photo], labels=[0.5, 1.0])  # type: ignore[list-item]


def test_subset_of_every_kind(tmp_path: Path) -> None:
    for i in range(4):
        save_colour(tmp_path / f"class{i % 2}" / f"{i}.png", (i, 0, 0))
    array = np.zeros((4, 6, 8, 3), np.uint8)
    array[..., 0] = np.array([0, 2, 1, 3])[:, None, None]
    for source in [open_images(tmp_path), open_images(array, labels=[0, 0, 1, 1])]:
        part = pickle.loads(pickle.dumps(source.subset(np.array([3, 0, 1]))))
        assert [pixels(part[i])[0, 0, 0] for i in range(3)] == [3, 0, 2]
        assert part.names == [source.names[i] for i in (3, 0, 1)]
        assert part.labels.tolist() == [1, 0, 0]
        assert [pixels(part.subset([2])[0])[0, 0, 0]] == [2]
    stacked = open_images(array).subset([3, 0]).uint8_array()
    assert stacked is not None
    assert stacked[:, 0, 0, 0].tolist() == [3, 0]


def test_an_image_set_opens_as_itself(photo: Image.Image) -> None:
    first = open_images([photo], labels=["a"])
    again = open_images(first, labels=[7])
    assert isinstance(again, ImageSet)
    assert (first.classes, again.classes) == (["a"], None)


def test_hugging_face_dataset(tmp_path: Path, photo: Image.Image) -> None:
    datasets = pytest.importorskip("datasets")
    grey16 = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    columns = {"img": [photo, None, grey16], "label": [1, 0, 1], "text": ["a", "b", "c"]}
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "text": datasets.Value("string")}
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    for source in [dataset, dataset.with_format("torch"), tmp_path / "saved"]:
        images = pickle.loads(pickle.dumps(open_images(source)))
        assert images.classes == ["cat", "dog"]
        assert images.labels.tolist() == [1, 0, 1]
        assert np.array_equal(pixels(images[0]), pixels(photo))
        assert images.size(0) == (60, 80)
        assert pixels(images[2])[0, 0].tolist() == [128] * 3
        with pytest.raises(UnreadableImageError, match="000001"):
            images[1]
    splits = datasets.DatasetDict({"train": dataset})
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"splits train.*dataset\['train'\]"):
        open_images(splits)
    with pytest.raises(ValueError, match=r"Pass one of them: .*train"):
        open_images(tmp_path / "splits")
    assert len(open_images(tmp_path / "splits" / "train")) == 3
    with pytest.raises(ValueError, match="one column of type Image"):
        open_images(dataset.remove_columns("img"))


def test_hugging_face_labels_that_are_ambiguous(photo: Image.Image) -> None:
    datasets = pytest.importorskip("datasets")
    labels = {name: datasets.ClassLabel(names=["a", "b"]) for name in ["fine", "coarse"]}
    dataset = datasets.Dataset.from_dict(
        {"image": [photo], "fine": [1], "coarse": [0]},
        features=datasets.Features({"image": datasets.Image(), **labels}),
    )
    with pytest.raises(ValueError, match=r"fine, coarse\. Pass labels=dataset\['fine'\]"):
        open_images(dataset)
    found = open_images(dataset, labels=dataset["fine"])
    assert found.labels is not None
    assert found.labels.tolist() == [1]


def test_drawn_pictures_survive_a_round_trip(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 24), WHITE)
    ImageDraw.Draw(image).ellipse((4, 4, 20, 20), fill=RED)
    for suffix in [".png", ".bmp", ".tif", ".ppm"]:
        image.save(tmp_path / f"a{suffix}")
        assert np.array_equal(pixels(read_image(tmp_path / f"a{suffix}")), pixels(image))
        with (tmp_path / f"a{suffix}").open("rb") as file:
            assert np.array_equal(pixels(read_image(file)), pixels(image))


# CSV files


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("a.png", "sub/b.png", "c.png"):
        save_colour(folder / name)
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a.png,10\nsub/b.png,9\nc.png,10\n",
        "path,label\na.png,10\nsub/b.png,9\nc.png,10\n",
        "\n id ,Class,Image\n1,10,a.png\n2,9,sub/b.png\n\n3,10,c.png",
        'filename;category\r\na.png;10\r\nsub/b.png; 9\r\n"c.png";10\r\n',
        "a.png\t10\nsub/b.png\t9\nc.png\t10\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_of_paths_and_labels(tmp_path: Path, text: str, encoding: str) -> None:
    images = open_images(write_csv(tmp_path, text, encoding))
    assert images.names == ["a.png", "sub/b.png", "c.png"]
    assert images.classes == ["9", "10"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    assert pixels(images[1])[0, 0].tolist() == list(RED)


def test_csv_without_labels_and_labels_beside_it(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "path\na.png\nc.png\n")
    assert open_images(path).labels is None
    assert open_images(path, labels=["x", "y"]).classes == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a.png,x\nno.png,y\nnor.png,y\n", FileNotFoundError, r"line 2: there is no file 'no\.png' \(2 of 3 rows"),
        ("no.png,x\na.png,y\n", FileNotFoundError, "line 1: there is no file 'no.png'"),
        ("path,label\na.png,x\nc.png,\n", ValueError, r"line 3: no label or no path \(1 such"),
        ("path,label\na.png\n", ValueError, "line 2: no label"),
        ("picture,kind\na.png,x\n", ValueError, "header is picture, kind"),
        ("path,label\n", EmptyDatasetError, "has no rows"),
        ("", EmptyDatasetError, "has no rows"),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_images(write_csv(tmp_path, text))


def test_a_file_that_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        open_images(path)


# What else fine-tuning needs


def test_class_folders_without_an_image_are_known(tmp_path: Path) -> None:
    save_colour(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "readme.txt").write_text("no image")
    images = open_images(tmp_path)
    assert images.classes == ["a"]
    assert images.empty == ["b", "c"]
    assert open_images(tmp_path / "a").empty == []


def test_unreadable_images_are_found_wherever_they_are_cut(tmp_path: Path, photo: Image.Image) -> None:
    large = photo.resize((640, 480))
    for i, suffix in enumerate((".jpg", ".png", ".webp", ".jpg")):
        large.save(tmp_path / f"{i}{suffix}")
    for name, keep in (("0.jpg", -200), ("1.png", -2000), ("2.webp", -500)):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    images = open_images(tmp_path)
    found = unreadable(images, num_threads=2)
    assert list(found) == [0, 1, 2]
    for i, reason in found.items():
        with pytest.raises(UnreadableImageError, match=re.escape(reason)):
            images[i]

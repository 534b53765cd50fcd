import gzip
import hashlib
import io
import os
import runpy
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import robust_lr
from robust_lr import data
from robust_lr.data import registry
from robust_lr.utils.errors import InputError, RunError

ASSETS = Path(robust_lr.__file__).parent / "assets"
rng = np.random.default_rng(0)
# SHA-256 of the packaged arrays
DIGESTS = {
    "train_images": "a7a5caf0ea9138a0808c7eded0cf75e4e9bfc406bcc2287e02001f26a77b48ee",
    "train_labels": "fad16c75b1fba7c6f5bd49ce22d784c5878d8c6065bcae46cbd04a2846a7844f",
    "train_ids": "774ffdeac5ac72c11e2d23f0d4b571aa52ed70a0a3910fe2512f983ae4844a10",
    "test_images": "3d7f6d64869a3f2d1afe64ae33ffb9b20670a91b31e3bbf0657e3999ec7b35cf",
    "test_labels": "6b25654537ff83dd6c40fe0a122c7778d8219b2a88ff02c36dbdd21152fdb075",
    "test_ids": "da71f82810e2bd219f5cc2d60c625c7b4d07f33055c2f6a231ed47438c799ea8",
}


def picture(height=4, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def jpeg(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG")
    return buffer.getvalue()


def jpeg_arrays(count, prefix="", labels=None):
    """The JPEG form of an npz, and the bytes of each image."""
    images = [jpeg(picture(16, 16, seed)) for seed in range(count)]
    return {
        f"{prefix}jpg": np.frombuffer(b"".join(images), np.uint8),
        f"{prefix}off": np.cumsum([0, *map(len, images)]),
        f"{prefix}y": np.arange(count) if labels is None else np.array(labels),
    }, images


def pixel_arrays(count=6, **more):
    return {"images": rng.integers(0, 256, (count, 4, 5), np.uint8), "labels": np.arange(count) % 3} | more


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return write


@pytest.fixture
def tree(tmp_path):
    """train has the classes ant, bee, cat; test lacks ant, and has a nested folder and files that are no images."""
    for seed, path in enumerate(["train/ant/a.png", "train/bee/b.png", "train/cat/c.PNG"]):
        save(tmp_path / path, picture(seed=seed))
    for seed, path in enumerate(["test/cat/z.png", "test/cat/deep/y.png", "test/bee/x.png"]):
        save(tmp_path / path, picture(seed=10 + seed))
    (tmp_path / "test/bee/notes.txt").write_text("no image")
    (tmp_path / "test/bee/.hidden.png").write_text("no image")
    (tmp_path / "test/.cache").mkdir()
    return tmp_path


def test_the_embedded_set_loads():
    train, test = data.load(), data.load("fashion-mnist-mini", "test")
    assert (len(train), len(test)) == (4000, 1000)
    for dataset, count, full in ((train, 400, 60000), (test, 100, 10000)):
        assert torch.equal(dataset.labels.bincount(), torch.full((10,), count))
        assert bool((dataset.ids.diff() > 0).all())
        assert dataset.ids.max() < full
        assert dataset.image_shape == (1, 28, 28)
        assert dataset.num_classes == len(dataset.classes) == 10
    assert train.classes[train[0][1]] == "Ankle boot"  # the first image of Fashion-MNIST
    assert 0.2 < train.batch(torch.arange(4000))[0].mean() < 0.35  # 0.286 over the whole set


def test_embedded_arrays_equal_the_selection():
    with np.load(ASSETS / "fashion-mnist-mini.npz", allow_pickle=False) as npz:
        digests = {key: hashlib.sha256(npz[key].tobytes()).hexdigest() for key in npz.files}
        types = {key: npz[key].dtype.name for key in npz.files}
    assert types == {
        f"{s}_{k}": t
        for s in ("train", "test")
        for k, t in (("images", "uint8"), ("labels", "uint8"), ("ids", "int32"))
    }
    assert digests == DIGESTS


def test_cut_takes_the_first_of_each_class_in_file_order(tmp_path):
    def write(name, array):
        sizes = np.array(array.shape, ">i4").tobytes()
        (tmp_path / f"{name}-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
        )

    images = rng.integers(0, 256, (7, 28, 28), np.uint8)
    labels = np.array([1, 1, 0, 1, 0, 0, 1], np.uint8)
    for stem in ("train", "t10k"):
        write(f"{stem}-images-idx3", images)
        write(f"{stem}-labels-idx1", labels)
    arrays = runpy.run_path(str(ASSETS / "cut_fashion_mnist_mini.py"))["cut_arrays"](tmp_path, train=2, test=1)
    assert arrays["train_ids"].tolist() == [0, 1, 2, 4]
    assert arrays["train_labels"].tolist() == [1, 1, 0, 0]
    assert arrays["test_ids"].tolist() == [0, 2]
    assert np.array_equal(arrays["train_images"], images[[0, 1, 2, 4]])


def test_license_of_the_embedded_set():
    text = (ASSETS / "LICENSE.fashion-mnist").read_text()
    assert "2017 Zalando SE" in text
    assert "The above copyright notice and this permission notice shall be included" in text


def test_items_and_batches_agree_to_the_bit(npz, tree):
    arrays, _ = jpeg_arrays(3)
    for name in (npz(**arrays), f"folder:{tree}", "fashion-mnist-mini"):
        dataset = data.load(name).subset([2, 0])
        images, labels, ids = dataset.batch(torch.tensor([1, 0]))
        assert (images.dtype, labels.dtype, ids.dtype) == (torch.float32, torch.int64, torch.int64)
        for j, i in enumerate((1, 0)):
            image, label, id_ = dataset[i]
            assert torch.equal(images[j], image)
            assert (labels[j], ids[j]) == (label, id_)
            assert isinstance(label, int)
            assert isinstance(id_, int)
        assert images.shape[1:] == dataset.image_shape
        assert 0 <= images.min() < images.max() <= 1


def test_pixels_are_divided_by_255():
    dataset = data.from_arrays(np.array([[[0, 51, 255]]], np.uint8), [0])
    assert torch.equal(dataset[0][0], torch.tensor([[[0.0, 0.2, 1.0]]]))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_channels_first_or_last(axes):
    last = np.stack([picture(seed=s) for s in range(2)])
    dataset = data.from_arrays(last.transpose(axes), [0, 1])
    assert dataset.image_shape == (3, 4, 5)
    assert torch.equal(dataset.images, torch.from_numpy(last).permute(0, 3, 1, 2))


def test_float_images_are_kept_and_not_shared():
    mine = torch.rand(3, 1, 4, 4)
    dataset = data.from_arrays(mine, [0, 1, 1])
    expected = mine.clone()
    mine.zero_()
    dataset[1][0].zero_()
    dataset.batch(torch.arange(3))[0].zero_()
    assert torch.equal(dataset.batch(torch.arange(3))[0], expected)


def test_subset_and_take_keep_ids(npz):
    dataset = data.load(npz(**pixel_arrays(ids=np.array([9, 4, 7, 1, 0, 30]))))
    part = dataset.subset(torch.tensor([5, 1]))
    assert part.ids.tolist() == [30, 4]
    assert torch.equal(part[0][0], dataset[5][0])
    assert torch.equal(part.images, dataset.images[[5, 1]])
    assert dataset.subset([5, 1]).subset([1]).ids.tolist() == [4]
    taken = dataset.take(2)
    assert (len(taken), taken.ids.tolist(), taken.num_classes) == (2, [9, 4], 3)
    assert torch.equal(taken[1][0], dataset[1][0])


def test_lazy_subset_keeps_images_and_ids(npz):
    arrays, _ = jpeg_arrays(3)
    dataset = data.load(npz(**arrays, ids=np.array([5, 8, 2])))
    assert dataset.ids.tolist() == [5, 8, 2]
    part = dataset.subset([2, 1]).subset([1])
    assert part[0][1:] == (1, 8)
    assert torch.equal(part[0][0], dataset[1][0])


def test_iteration_ends_and_works_with_a_loader(npz):
    dataset = data.load(npz(**pixel_arrays(5)))
    assert [id_ for _, _, id_ in dataset] == [0, 1, 2, 3, 4]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    assert [ids.tolist() for _, _, ids in loader] == [[0, 1], [2, 3], [4]]


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        data.load(split="test").num_classes = 11


def test_wrong_positions_are_refused():
    dataset = data.load(split="test")
    with pytest.raises(IndexError):
        dataset[1000]
    with pytest.raises(IndexError):
        dataset.batch(torch.tensor([1000]))
    for take in (0, 1001):
        with pytest.raises(InputError, match=rf"cannot take {take} images; allowed are 1\.\.1000"):
            dataset.take(take)
    with pytest.raises(InputError, match="bool"):  # a mask is not a list of positions
        dataset.subset(dataset.labels == 3)
    with pytest.raises(InputError, match="float32"):
        dataset.batch(torch.tensor([1.0]))
    with pytest.raises(InputError, match=f"id {int(dataset.ids[1])} appears twice"):
        dataset.subset([1, 1])
    with pytest.raises(InputError, match="empty"):
        dataset.subset(torch.tensor([], dtype=torch.int64))


def test_npz_of_two_splits(npz):
    train, test = pixel_arrays(6), pixel_arrays(2)
    name = npz(**{f"train_{k}": v for k, v in train.items()}, **{f"test_{k}": v for k, v in test.items()})
    assert len(data.load(name, "train")) == 6
    dataset = data.load(name, "test")
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(test["images"]))
    assert dataset.num_classes == 3  # as in train; the two test images have labels 0 and 1


def test_npz_number_of_classes_may_be_given(npz):
    assert data.load(npz(**pixel_arrays(num_classes=10))).num_classes == 10
    with pytest.raises(InputError, match=r"label 2 at index 2 is outside the classes; num_classes=2 allows 0\.\.1"):
        data.load(npz(**pixel_arrays(num_classes=2)))
    with pytest.raises(InputError, match=r"num_classes is int64 \[2\]; expected one integer"):
        data.load(npz(**pixel_arrays(num_classes=[2, 3])))


def test_npz_of_jpegs(npz):
    train, images = jpeg_arrays(3, "train_", [2, 0, 1])
    test, _ = jpeg_arrays(1, "test_", [0])
    name = npz(**train, **test)
    dataset = data.load(name)
    assert (dataset.num_classes, dataset.image_shape) == (3, (3, 16, 16))
    for i, (image, label, id_) in enumerate(dataset):
        pixels = np.array(Image.open(io.BytesIO(images[i])))
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        assert (label, id_) == ([2, 0, 1][i], i)
    assert data.load(name, "test").num_classes == 3


def test_npz_path_starts_from_root(npz, tmp_path):
    npz(**pixel_arrays(4))
    assert len(data.load("npz:set.npz", root=tmp_path)) == 4


def broken_jpegs(**change):
    return jpeg_arrays(3)[0] | change


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (pixel_arrays(labels=np.array([0, 1, 2, 0, -1, 0])), r"label -1 at index 4 .* allows 0\.\.2"),
        (pixel_arrays(labels=np.arange(5)), "6 images but 5 labels"),
        (pixel_arrays(labels=np.zeros(6)), r"labels have dtype float64 and shape \[6\]; allowed are integers"),
        (pixel_arrays(labels=np.zeros((6, 1), int)), r"shape \[6, 1\]"),
        (pixel_arrays(ids=np.arange(5)), "6 labels but 5 ids"),
        (pixel_arrays(ids=np.array([0, 1, 2, 3, 4, 3])), "id 3 appears twice"),
        (pixel_arrays(ids=np.arange(6) - 1), "id -1 is negative"),
        (pixel_arrays(0), "the set is empty"),
        ({"images": np.zeros((2, 4, 4), np.int64), "labels": [0, 1]}, "dtype int64; allowed are uint8"),
        ({"images": np.full((2, 4, 4), 255.0), "labels": [0, 1]}, r"span 255 to 255; allowed is \[0, 1\]"),
        ({"images": np.full((2, 4, 4), -0.1), "labels": [0, 1]}, r"span -0.1 to -0.1"),
        ({"images": np.full((2, 4, 4), np.nan), "labels": [0, 1]}, "without NaN"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8), "labels": [0, 1]}, r"shape \[2, 4, 4, 4\]"),
        ({"images": np.zeros((2, 3, 4, 3), np.uint8), "labels": [0, 1]}, "exactly one of the two"),
        ({"images": np.zeros((2, 16), np.uint8), "labels": [0, 1]}, r"shape \[2, 16\]"),
        ({"images": np.zeros((2, 0, 4), np.uint8), "labels": [0, 1]}, r"shape \[2, 0, 4\]"),
        ({"pixels": np.zeros((2, 4, 4), np.uint8)}, "no array 'labels' among pixels; expected images and labels"),
        ({"labels": np.zeros(2, int)}, "no array 'images' among labels"),
        ({"images": np.array([{}, {}]), "labels": [0, 1]}, "array 'images' cannot be read .*allow_pickle"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([None, None])}, "array 'labels' cannot be read"),
        ({"train_images": np.zeros((2, 4, 4)), "train_labels": [0, 1]}, "no split 'test' .* holds train_images"),
        (broken_jpegs(off=np.arange(3)), "3 offsets for 3 labels; expected one more"),
        (broken_jpegs(off=np.array([0, 9, 5, 20])), "off must not decrease"),
        (broken_jpegs(off=np.array([-1, 5, 9, 20])), "off must not decrease"),
        (broken_jpegs(off=np.array([0, 5, 9, 10**6])), r"off must not decrease, and stay in 0\.\."),
        (broken_jpegs(off=np.array([0.0, 5, 9, 10])), "off have dtype float64"),
        (broken_jpegs(jpg=np.zeros(900)), r"jpg is float64 \[900\]; expected uint8"),
        (broken_jpegs(off=np.zeros(1, int), y=np.zeros(0, int)), "the set is empty"),
        (broken_jpegs(y=np.array([0, 1, -3])), "label -3 at index 2"),
    ],
)
def test_npz_with_wrong_arrays_is_refused(npz, arrays, message):
    name = npz(**arrays)
    with pytest.raises(InputError, match=message) as caught:
        data.load(name, "test")
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_npz_are_refused(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, **pixel_arrays(50))
    content = whole.read_bytes()
    np.save(tmp_path / "plain.npy", np.zeros(3))
    for wrong in (
        b"",
        b"not an archive",
        b"\x80\x04N.",  # a pickle
        (tmp_path / "plain.npy").read_bytes(),
        content[: len(content) // 2],
        b"XX" + content[2:],
    ):
        path = tmp_path / "wrong.npz"
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=rf"{path} is damaged or not an npz file"):
            data.load(f"npz:{path}")
    middle = content.index(b"images.npy") + 100  # within the compressed pixels
    path.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    with pytest.raises(InputError, match="array 'images' cannot be read"):
        data.load(f"npz:{path}")
    with pytest.raises(InputError, match=r"no such file .*absent\.npz; check the path"):
        data.load(f"npz:{tmp_path / 'absent.npz'}")


def test_truncated_jpeg_names_its_index(npz):
    arrays, _ = jpeg_arrays(3)
    arrays["off"][2] -= 40  # image 1 loses its end, image 2 begins with it
    dataset = data.load(npz(**arrays))
    assert dataset[0][1] == 0
    with pytest.raises(InputError, match=r"image 1 of .*set\.npz cannot be read as an image \(image file is truncated"):
        dataset[1]
    with pytest.raises(InputError, match=r"image 2 of .*\(unknown format\); replace or remove it"):
        dataset.subset([0, 2]).batch(torch.arange(2))


def test_folder_with_splits(tree):
    train, test = data.load(f"folder:{tree}"), data.load("folder:.", "test", root=tree)
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 1, 2]
    assert test.labels.tolist() == [1, 2, 2]  # though this split has no ant
    assert [test.source.paths[i] for i in range(3)] == ["bee/x.png", "cat/deep/y.png", "cat/z.png"]
    assert test.ids.tolist() == [0, 1, 2]
    assert torch.equal(test[2][0], torch.from_numpy(picture(seed=10)).permute(2, 0, 1) / 255)


def test_folder_takes_val_for_test(tree):
    os.rename(tree / "test", tree / "val")
    assert data.load(f"folder:{tree}", "test").labels.tolist() == [1, 2, 2]
    (tree / "test").mkdir()  # like ImageNet's: images without class folders
    save(tree / "test/unlabeled.png", picture())
    assert data.load(f"folder:{tree}", "test").labels.tolist() == [1, 2, 2]


def test_folder_without_splits(tmp_path):
    save(tmp_path / "train/a.png", picture())  # here a class like any other
    save(tmp_path / "bus/a.png", picture())
    for split in ("train", "test"):
        dataset = data.load(f"folder:{tmp_path}", split)
        assert (len(dataset), dataset.classes) == (2, ("bus", "train"))


def test_folder_images_become_rgb(tmp_path):
    gray = picture()[:, :, 0]
    save(tmp_path / "a/gray.png", gray)
    save(tmp_path / "b/color.png", picture())
    image = data.load(f"folder:{tmp_path}")[0][0]
    assert torch.equal(image, (torch.from_numpy(gray) / 255).expand(3, 4, 5))


def test_folder_errors(tree):
    with pytest.raises(InputError, match=r"found no class folders in .*absent for split 'train'.*check the path"):
        data.load(f"folder:{tree / 'absent'}")
    os.rename(tree / "train", tree / "other")
    with pytest.raises(InputError, match=r"found no class folders in .*train for split 'train'"):
        data.load(f"folder:{tree}")
    (tree / "bare/a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images in .*bare; allowed are \.bmp"):
        data.load(f"folder:{tree / 'bare'}")


def test_folder_with_unreadable_files(tree):
    dataset = data.load(f"folder:{tree}")
    (tree / "train/bee/b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"file .*train/bee/b\.png cannot be read as an image \(unknown format\)"):
        dataset[1]
    whole = (tree / "train/cat/c.PNG").read_bytes()
    (tree / "train/cat/c.PNG").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match=r"train/cat/c\.PNG cannot be read"):
        dataset[2]
    os.remove(tree / "train/ant/a.png")
    with pytest.raises(InputError, match=r"train/ant/a\.png cannot be read as an image \(.*No such file"):
        dataset[0]


def test_folder_with_more_than_8_bits_is_refused(tmp_path):
    save(tmp_path / "a/deep.png", np.full((4, 4), 60000, np.uint16))
    with pytest.raises(InputError, match=r"deep\.png .* more than 8 bits per channel"):
        data.load(f"folder:{tmp_path}")


def test_folder_with_images_of_two_sizes_is_refused(tree):
    save(tree / "train/bee/b.png", picture(6, 6))
    dataset = data.load(f"folder:{tree}")
    with pytest.raises(InputError, match=r"b\.png has shape \[3, 6, 6\], the first .* has \[3, 4, 5\]; resize"):
        dataset.batch(torch.arange(3))
    small = data.load(f"folder:{tree}", transform=lambda image: torch.full((1, 2, 2), image.height / 10))
    assert small.image_shape == (1, 2, 2)
    assert torch.equal(small.batch(torch.arange(3))[0][:, 0, 0, 0], torch.tensor([0.4, 0.6, 0.4]))


@pytest.mark.parametrize(
    "result",
    [torch.full((3, 4, 4), 1.5), torch.full((3, 4, 4), torch.nan), torch.zeros(4, 4), torch.zeros(3, 4, 4).double(), 1],
)
def test_transform_must_return_pixels(tree, result):
    with pytest.raises(
        InputError, match=r"transform returned a wrong image for file .*a\.png; .*normalization belongs"
    ):
        data.load(f"folder:{tree}", transform=lambda image: result)


def test_pixels_are_the_same_on_every_path(tree):
    """A transform may give uint8; every level is the float32 nearest to its 255th."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    dataset = data.load(f"folder:{tree}", transform=lambda image: levels)
    assert dataset.raw(torch.arange(2))[0].dtype == torch.uint8
    expected = torch.from_numpy(np.arange(256) / 255).float().view(1, 16, 16)
    for image in (dataset[0][0], dataset.batch(torch.arange(1))[0][0], data.from_arrays(levels, [0])[0][0]):
        assert torch.equal(image, expected)
    heights = []

    def mixed(image):  # float32 for one image, uint8 for the others
        heights.append(image)
        return levels / 255 if len(heights) == 3 else levels

    dataset = data.load(f"folder:{tree}", transform=mixed)
    assert torch.equal(dataset.batch(torch.arange(3))[0], expected.expand(3, 1, 16, 16))


def test_transform_is_for_decoded_images_only(npz):
    for name in ("fashion-mnist-mini", "mnist", npz(**pixel_arrays())):
        with pytest.raises(InputError, match="is held in memory and takes no transform"):
            data.load(name, transform=lambda image: torch.zeros(1, 2, 2))


def test_imagenet(tmp_path):
    wide = picture(128, 256)
    center = np.array(Image.fromarray(wide).resize((512, 256), Image.Resampling.BILINEAR).crop((144, 16, 368, 240)))
    for path in ("train/n02/a.png", "val/n01/b.png", "val/n02/c.png"):
        save(tmp_path / path, wide)
    for split, labels in (("train", [1]), ("test", [0, 1])):
        dataset = data.load("imagenet", split, root=tmp_path)
        assert (dataset.image_shape, dataset.labels.tolist()) == ((3, 224, 224), labels)
        assert torch.equal(dataset[0][0], torch.from_numpy(center).permute(2, 0, 1) / 255)
    bare = data.load("imagenet", root=tmp_path, transform=lambda image: torch.zeros(3, *image.size))
    assert bare.image_shape == (3, 256, 128)


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10", "cifar100", "imagenet"])
def test_errors_for_missing_files_say_where_they_were_expected(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = tmp_path / "data/imagenet/train" if name == "imagenet" else tmp_path / "data"
    for root, expected in ((None, default), (tmp_path / "else", tmp_path / "else")):
        with pytest.raises(InputError) as caught:
            data.load(name, root=root)
        assert str(expected) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded or made


def write_idx(folder, stem, images, labels, compressed=False):
    """Write the two files of one split as MNIST's are."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        file = folder / f"{stem}-{kind}-ubyte{'.gz' if compressed else ''}"
        file.write_bytes(gzip.compress(content) if compressed else content)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("fashion-mnist", "FashionMNIST/raw"), ("mnist", "MNIST/raw"), ("mnist", "raw"), ("fashion-mnist", ".")],
)
def test_idx_files_as_distributed_and_as_torchvision_lays_them_out(name, folder, compressed, tmp_path):
    images, labels = rng.integers(0, 256, (3, 28, 28), np.uint8), np.array([5, 0, 4], np.uint8)
    write_idx(tmp_path / folder, "train", images, labels, compressed)
    write_idx(tmp_path / folder, "t10k", images[::-1], labels[::-1], compressed)
    test = data.load(name, "test", root=tmp_path)
    assert (test.labels.tolist(), test.num_classes, test.ids.tolist()) == ([4, 0, 5], 10, [0, 1, 2])
    assert torch.equal(test.images[:, 0], torch.from_numpy(images[::-1].copy()))
    assert data.load(name, root=tmp_path).labels.tolist() == [5, 0, 4]


def test_idx_files_are_those_that_torchvision_reads(tmp_path):
    images, labels = rng.integers(0, 256, (3, 28, 28), np.uint8), np.array([5, 0, 4], np.uint8)
    for stem in ("train", "t10k"):
        write_idx(tmp_path / "FashionMNIST" / "raw", stem, images, labels)
    theirs = torchvision.datasets.FashionMNIST(tmp_path, train=False)
    ours = data.load("fashion-mnist", "test", root=tmp_path)
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert (ours.labels.tolist(), list(ours.classes)) == (theirs.targets.tolist(), theirs.classes)
    assert list(registry.DIGITS) == torchvision.datasets.MNIST.classes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0", "is not an IDX file"),
        (bytes([0, 0, 13, 3]) + bytes(12), "is not an IDX file"),
        (bytes([0, 0, 8, 3]) + np.array([1, 28, 28], ">i4").tobytes() + bytes(9), "damaged: 9 bytes"),
    ],
)
def test_damaged_idx_files_are_named(content, words, tmp_path):
    write_idx(tmp_path, "t10k", np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte (is )?{words}"):
        data.load("mnist", "test", root=tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:-9])
    with pytest.raises(InputError, match="damaged"):
        data.load("mnist", "test", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_through_torchvision(name, tmp_path, monkeypatch):
    class Cifar:  # torchvision checks the MD5 of the real files, so that none can be made here
        def __init__(self, root, train, download):
            assert (root, download) == (tmp_path, False)
            self.data = np.stack([picture(32, 32, seed) for seed in range(2)])
            self.targets = [1, 0] if train else [0, 1]
            self.classes = ["airplane", "automobile", "bird"]

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", Cifar)
    dataset = data.load(name, "test", root=tmp_path)
    assert (dataset.image_shape, dataset.labels.tolist(), dataset.num_classes) == ((3, 32, 32), [0, 1], 3)
    assert torch.equal(dataset.images[1], torch.from_numpy(picture(32, 32, 1)).permute(2, 0, 1))


def test_a_torchvision_that_cannot_be_imported_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RunError, match="cifar10 needs torchvision, which cannot be imported"):
        data.load("cifar10", root=tmp_path)


def test_unknown_names():
    with pytest.raises(
        InputError, match=r"unknown data set 'cifar-10': did you mean 'cifar10'\? choose one of .*npz:PATH"
    ):
        data.load("cifar-10")
    with pytest.raises(InputError, match=r"unknown data set 'folder:'.*did you mean 'folder:PATH'\?"):
        data.load("folder:")
    with pytest.raises(InputError, match=r"unknown data set 'zzz': choose one of "):
        data.load("zzz")
    with pytest.raises(InputError, match="unknown data set 'mnist:here'"):
        data.load("mnist:here")
    with pytest.raises(InputError, match="unknown split 'val': choose one of train, test"):
        data.load("mnist", "val")


def test_content_hash_in_memory():
    images, labels = rng.integers(0, 256, (3, 4, 4), np.uint8), [0, 1, 0]
    base = data.content_hash(data.from_arrays(images, labels, name="one"))
    assert base == data.content_hash(data.from_arrays(images.copy(), labels, name="two"))
    changed = images.copy()
    changed[2, 3, 3] ^= 1
    others = [
        data.from_arrays(changed, labels),
        data.from_arrays(images, [0, 1, 1]),
        data.from_arrays(images, labels, [0, 1, 3]),
        data.from_arrays(images, labels).take(2),
        data.from_arrays(images, labels).subset([1, 0, 2]),
        data.from_arrays(images.reshape(3, 2, 8), labels),
    ]
    assert len({base, *map(data.content_hash, others)}) == 7


def test_content_hash_of_files(tree):
    def now(**options):
        return data.content_hash(data.load(f"folder:{tree}", **options))

    hashes = [now(), now(split="test"), data.content_hash(data.load(f"folder:{tree}").take(2))]
    (tree / "train/bee/b.png").write_bytes((tree / "train/bee/b.png").read_bytes() + b" ")
    hashes.append(now())
    assert now() == hashes[-1]
    os.rename(tree / "train/bee/b.png", tree / "train/bee/c.png")
    hashes.append(now())
    assert len(set(hashes)) == 5


def test_content_hash_of_jpegs(npz):
    arrays, _ = jpeg_arrays(2)
    before = data.content_hash(data.load(npz(**arrays)))
    assert before == data.content_hash(data.load(npz(**arrays)))
    arrays["jpg"] = arrays["jpg"].copy()
    arrays["jpg"][-40] ^= 1
    assert before != data.content_hash(data.load(npz(**arrays)))


def test_import_is_light():
    code = "import sys, robust_lr.data; print(*{'torchvision', 'PIL'} & set(sys.modules))"
    root = Path(robust_lr.__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""

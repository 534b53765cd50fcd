import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from robust_lr import data
from robust_lr.data.augmentation import TRANSFORMS
from robust_lr.data.loader import batches
from robust_lr.utils.errors import InputError

fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (14, 12, 3), np.uint8)


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(numbers):
    """Members as WebDataset orders them: class and image of each key in turn, with other things between."""
    files = {}
    for number in numbers:
        files[f"n0/{number:04}.cls"] = f"{number % 3}\n".encode()
        files[f"n0/{number:04}.PNG"] = encoded(picture(number))
        files[f"n0/{number:04}.json"] = b"{}"
    return files


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "train-000001.tar", samples(range(4, 7)))
    write(tmp_path / "train-000000.tar", samples(range(4)))
    write(tmp_path / "val-000000.tar", samples(range(10, 13)))
    return tmp_path


@fork
def test_shards_are_read_by_random_access(shards):
    train, test = (data.load("tar:.", split, shards) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes, train.image_shape) == (7, 3, 3, (3, 14, 12))
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert train.ids.tolist() == list(range(7))
    for set_, numbers in ((train, range(7)), (test, range(10, 13))):
        images, _, _ = set_.batch(torch.arange(len(set_)))
        for image, number in zip(images, numbers, strict=True):
            assert torch.equal(image, torch.from_numpy(picture(number)).permute(2, 0, 1) / 255)
    order = [torch.tensor([6, 0, 3]), torch.tensor([5, 1])]
    for one, other in zip(batches(train, order), batches(train, order, workers=2), strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_shards_take_a_transform_and_have_a_hash(shards):
    train = data.load(f"tar:{shards}", "train", transform=TRANSFORMS["imagenet"])
    assert train.image_shape == (3, 224, 224)
    before = data.content_hash(data.load(f"tar:{shards}", "train"))
    write(shards / "train-000001.tar", samples(range(5, 7)))
    assert data.content_hash(data.load(f"tar:{shards}", "train")) != before


def test_shards_without_splits_are_both_splits(tmp_path):
    write(tmp_path / "a.tar", samples(range(3)))
    assert len(data.load(f"tar:{tmp_path}", "train")) == len(data.load(f"tar:{tmp_path}", "test")) == 3


def test_a_split_that_is_missing_is_named(shards):
    (shards / "val-000000.tar").unlink()
    with pytest.raises(InputError, match=r"no shards of split 'test' in .*; expected test\*.tar"):
        data.load(f"tar:{shards}", "test")
    assert len(data.load(f"tar:{shards}", "train")) == 7


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jpg": b"x"}, r"a.jpg in .*bad.tar has no class; expected a.cls beside it"),
        ({"a.jpg": b"x", "a.cls": b"one"}, r"a.cls in .*bad.tar holds b'one'; it must hold a class number"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, r"a.cls in .*bad.tar holds b'-1'; it must hold a class number"),
        ({"a.cls": b"1"}, r"no images in .*bad.tar; allowed are .bmp"),
        ({"a.jpg": b"x", "a.cls": b"1"}, r"a.jpg in .*bad.tar cannot be read as an image"),
    ],
)
def test_shards_with_wrong_members_are_named(tmp_path, files, words):
    write(tmp_path / "bad.tar", files)
    with pytest.raises(InputError, match=words):
        data.load(f"tar:{tmp_path}", "train")


def test_files_that_are_not_shards_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no \*.tar files in"):
        data.load(f"tar:{tmp_path}", "train")
    for content in (b"no tar file", None):
        write(tmp_path / "bad.tar", samples(range(3)), "w:gz" if content else "w")
        whole = (tmp_path / "bad.tar").read_bytes()
        (tmp_path / "bad.tar").write_bytes(content or whole[:2560])
        with pytest.raises(InputError, match=r"bad.tar is truncated or not an uncompressed tar file"):
            data.load(f"tar:{tmp_path}", "train")
    write(tmp_path / "bad.tar", samples(range(3)), "w:gz")
    with pytest.raises(InputError, match=r"bad.tar is truncated or not an uncompressed tar file"):
        data.load(f"tar:{tmp_path}", "train")

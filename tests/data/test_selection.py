import numpy as np
import pytest
import torch
from PIL import Image

import robust_lr as rlr
from robust_lr.data.selection import draw_balanced, find_listed
from robust_lr.utils.errors import InputError


def test_a_balanced_draw_is_keyed_by_image_and_even_over_classes():
    labels = torch.arange(1000) // 100  # sorted by class, as folders are
    ids = torch.arange(1000) * 7
    chosen = draw_balanced(labels, ids, 50, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [5] * 10
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    again = draw_balanced(labels[order], ids[order], 50, seed=0)
    assert set(ids[order][again].tolist()) == set(ids[chosen].tolist())
    assert set(draw_balanced(labels, ids, 50, seed=1).tolist()) != set(chosen.tolist())
    assert len(draw_balanced(labels, ids, 5000, seed=0)) == 1000
    assert torch.bincount(labels[draw_balanced(labels, ids, 13, seed=0)]).max() == 2


@pytest.fixture
def folder(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(tmp_path / "set" / kind / f"{kind}{i}.png")
    return rlr.data.load(f"folder:{tmp_path / 'set'}", "test")


def test_a_list_of_names_chooses_images_and_is_part_of_the_data_set_s_name(folder, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("dog/dog2.png 1\nval/cat/cat0.png\n\n")
    chosen = find_listed(folder, file)
    assert chosen.labels.tolist() == [1, 0]
    assert "list.txt" in chosen.name
    file.write_text("dog/dog2.png\ncat/cat0.png\n")
    assert find_listed(folder, file).name != chosen.name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat/cat9.png", "cat/cat9.png is not among the 6 images"),
        ("cat/cat1.png\ncat/cat1.png", "names cat/cat1.png twice"),
        ("", "names no image"),
    ],
)
def test_lists_that_do_not_fit_are_named(folder, tmp_path, text, words):
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        find_listed(folder, file)
    with pytest.raises(InputError, match="cannot be read"):
        find_listed(folder, tmp_path / "gone.txt")
    with pytest.raises(InputError, match="not a folder of image files"):
        find_listed(rlr.data.load("fashion-mnist-mini", "test"), file)

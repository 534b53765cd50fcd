"""The gallery, and transfer between models."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
from conftest_of_reports import PROTOCOLS, images, network
from PIL import Image
from safetensors.torch import save_file

import robust_lr as rlr
from robust_lr.reports.html import html
from robust_lr.reports.record import build
from robust_lr.reports.rows import MAX_CHARACTERS
from robust_lr.reports.sections import images as section

EPS = 16 / 255
gallery_of = sys.modules[section.__module__]


def keep(folder, data, adversarial):
    """Write adversarial images as an evaluation keeps them."""
    (folder / "images").mkdir()
    save_file({"ids": data.ids, "float32": adversarial}, folder / "images" / "adversarial-00001-of-00001.safetensors")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """An evaluation of the shipped network, with its images."""
    folder = tmp_path_factory.mktemp("kept")
    data = rlr.data.load("fashion-mnist-mini", split="test").take(24)
    model = rlr.load_model()
    protocol = rlr.protocols.PGD(name="pgd", eps=2 * EPS, step_size=EPS, steps=3)
    rlr.evaluate(model, data, protocol, out=folder)
    x, labels, _ = data.batch(torch.arange(24))
    adversarial = rlr.attacks.pgd_linf(model, x, labels, eps=2 * EPS, step_size=EPS, steps=3)
    keep(folder, data, adversarial.detach())
    return folder, x, adversarial.detach()


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.png))))


def test_the_gallery_shows_broken_images_with_their_perturbation(kept):
    folder, x, adversarial = kept
    report = build([folder])
    (gallery,) = section(report).blocks
    rows = {row.id: row for row in report.evaluations[0].evaluation.rows}
    fallen = [row for row in rows.values() if row.clean == row.label and not row.robust]
    assert f"of the {len(fallen)} images that the attack broke, of 24 in all" in gallery.note
    for example in gallery.examples:
        id_ = int(example.words.split(":")[0].removeprefix("Image "))
        assert rows[id_] in fallen
        clean, change, attacked = map(pixels, example.pictures)
        assert np.array_equal(clean, (x[id_, 0] * 255).round().numpy())
        assert np.array_equal(attacked, (adversarial[id_, 0] * 255).round().numpy())
        assert np.abs(change.astype(float) - 127.5).max() <= 128
        assert (np.sign(change.astype(float) - 127.5) == np.sign((adversarial - x)[id_, 0].numpy())).mean() > 0.3
        assert f"predicted {rows[id_].adversarial}" in example.pictures[2].alt
    page = html(report)
    assert page.count("<img ") == 3 * len(gallery.examples)
    assert page == html(build([folder]))


def test_adversarial_images_are_shown_alone_without_their_data_set(tmp_path):
    data = images()
    rlr.evaluate(network(0.3), data, PROTOCOLS[0], out=tmp_path)
    keep(tmp_path, data, data.batch(torch.arange(60))[0])
    (gallery,) = section(build([tmp_path])).blocks
    assert {len(example.pictures) for example in gallery.examples} == {1}


def test_a_damaged_file_of_images_is_named(tmp_path):
    rlr.evaluate(network(0.3), images(), PROTOCOLS[0], out=tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "adversarial-00001-of-00001.safetensors").write_bytes(b"no tensors")
    with pytest.raises(rlr.InputError, match=r"00001\.safetensors cannot be read"):
        html(build([tmp_path]))


def test_transfer_is_a_table_and_a_plot(tmp_path):
    rlr.evaluate(network(0.3), images(), PROTOCOLS[0], out=tmp_path)

    def score(value):
        return {"accuracy": value, "denominators": {"accuracy": 60}}

    record = {"models": ["a", "b"], "scores": [[score(0.1), score(0.5)], [score(0.7), score(0.2)]]}
    (tmp_path / "transfer.json").write_text(json.dumps(record))
    table, plot = section(build([tmp_path])).blocks
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "10.0", "50.0"], ["b", "70.0", "20.0"]]
    assert table.rows[0][2].share.n == 60
    assert plot.kind == "heat"
    assert "made for a, judged by b: 50.0" in html(build([tmp_path]))
    (tmp_path / "transfer.json").write_text("{}")
    with pytest.raises(rlr.InputError, match="is not a transfer matrix"):
        html(build([tmp_path]))


def test_the_largest_gallery_and_all_rows_leave_a_page_below_5_mb():
    side = gallery_of.MAX_SIDE
    noise = torch.rand(3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(0))
    sharp = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    assert max(Image.open(io.BytesIO(base64.b64decode(gallery_of.png(noise)))).size) == side
    pictures = 3 * gallery_of.MAX_EXAMPLES * gallery_of.MAX_GALLERIES
    assert pictures * len(gallery_of.png(sharp)) + MAX_CHARACTERS < 4_500_000


def test_without_images_there_is_no_section(report):
    assert section(report) is None

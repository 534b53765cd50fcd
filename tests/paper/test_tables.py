import json

import pytest
import torch
from click.testing import CliRunner
from helpers import noise
from torch.nn import functional as F

from robust_lr import config
from robust_lr.cli import main
from robust_lr.config.training import from_dict
from robust_lr.data.dataset import content_hash
from robust_lr.data.registry import load as load_data
from robust_lr.models.build import MODELS, build_model
from robust_lr.models.checkpoint import load_model, weights_hash
from robust_lr.models.cost import paper_size, profile
from robust_lr.paper import tables
from robust_lr.paper.clean_accuracy import measure
from robust_lr.training.validation import top_k
from robust_lr.utils.errors import InputError
from robust_lr.utils.toml import read_toml

SHIPPED = {number: tables.read(f"table{number}") for number in range(2, 10)}
DISTINCT = {tuple(row.options.items()): f"{n}: {row.label}" for n, table in SHIPPED.items() for row in table.rows}

TABLE = """
title = "two networks"
seed = 4

[model]
width = 0.0625
stem = "small"

[data]
name = "npz:{data}"

[regular.attack]
protocol = "none"

[regular.train]
epochs = 2
batch_size = 8
device = "cpu"

[[rows]]
label = "LR-Net (G*)"
model = {{ name = "lrnet26", kernel_size = 3, prior = "table" }}
paper = {{ top1 = 73.2, top5 = 91.1 }}

[[rows]]
label = "NL-26"
model = {{ name = "nl26" }}
paper = {{ top1 = 47.7 }}
size = {{ params = 17.3 }}
"""


def small(folder, classes):
    (folder / "small.toml").write_text(TABLE.format(data=noise(folder / "small.npz", 8, classes, both=24)))
    return folder / "small.toml"


@pytest.fixture(scope="module")
def toml(tmp_path_factory):
    """A table of two small networks on 24 small pictures of 8 classes."""
    return small(tmp_path_factory.mktemp("table"), classes=8)


def invoke(toml, folder, *arguments):
    command = ["table", "7", "--config", str(toml), "--out", str(folder / "runs"), "--json", str(folder / "t.json")]
    return CliRunner().invoke(main, [*command, *arguments])


@pytest.fixture(scope="module")
def done(toml, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, invoke(toml, folder, "--limit", "20", "--jobs", "1")


# The shipped tables


@pytest.mark.parametrize("options", DISTINCT, ids=DISTINCT.values())
def test_every_row_trains(options):
    torch.manual_seed(0)
    model = build_model(**dict(options), num_classes=4, width=1 / 16).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x, y = torch.rand(8, 3, 64, 64), torch.arange(8) % 4
    losses = []
    for _ in range(11):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[10] < 0.8 * losses[0]


def test_every_network_is_a_row():
    assert {dict(options)["name"] for options in DISTINCT} == set(MODELS)


@pytest.mark.parametrize(
    ("number", "top1", "top5"),
    [
        (2, [], []),
        (
            3,
            [
                *(72.8, 73.0, 72.3, 71.4, 73.7, 73.9, 73.8, 73.8),
                *(70.8, 71.5, 71.9, 70.2, 50.7, 73.2, 74.1, 73.6, 72.3, 60.3, 73.6, 74.9, 75.7, 75.4, 68.4),
            ],
            [
                *(91.0, 91.1, 90.7, 90.3, 91.5, 91.6, 91.6, 91.6),
                *(89.8, 90.1, 90.4, 89.3, 74.7, 91.1, 91.7, 91.2, 90.7, 82.1, 91.6, 92.3, 92.6, 92.4, 88.0),
            ],
        ),
        (4, [75.7, 75.4, 75.1, 74.7, 73.7], []),
        (5, [75.3, 75.5, 75.5, 75.7, 75.3, 70.9], []),
        (6, [75.7, 75.5, 75.7, 74.8], []),
        (7, [72.8, 47.7, 73.4, 75.7, 76.0], [91.0, 72.1, 91.2, 92.6, 92.8]),
        (8, [70.1, 74.6, 72.8, 75.7, 76.3, 77.3, 77.9, 78.5], [89.4, 92.0, 91.0, 92.6, 93.2, 93.6, 94.0, 94.3]),
    ],
)
def test_rows_have_the_paper_s_results(number, top1, top5):
    rows = SHIPPED[number].rows
    assert [row.paper["top1"] for row in rows if row.paper] == top1
    assert [row.paper["top5"] for row in rows if "top5" in row.paper] == top5


def test_rows_vary_the_subject_of_their_table():
    assert [row.options.get("query_dim") for row in SHIPPED[4].rows] == [1, 2, 4, 8, 16]
    assert [row.options.get("channels_per_group") for row in SHIPPED[5].rows] == [1, 2, 4, 8, 16, "all"]
    assert {row.options["composability"] for row in SHIPPED[4].rows[1:]} == {"product"}
    for row in SHIPPED[3].rows:
        kernel = row.options["kernel_size"]
        assert row.label.endswith("full" if kernel == "full" else f"{kernel}x{kernel}")
        prior = "none" if "NG" in row.label else "table" if "G*" in row.label else "network"
        assert row.options.get("prior", "network") == prior


def test_ablations_train_regularly_with_one_config():
    for number in range(3, 9):
        assert SHIPPED[number].regimes == ["regular"]
        configs = [row.configs["regular"] for row in SHIPPED[number].rows]
        assert {config.attack.name for config in configs} == {"none"}
        assert len({str((config.train, config.data, config.seed, config.model["width"])) for config in configs}) == 1
    assert SHIPPED[9].regimes == ["regular", "adversarial"]


# Counting


@pytest.mark.parametrize("number", [2, 8, 9])
def test_count_only_prints_sizes_and_trains_nothing(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["table", str(number), "--count-only", "--json", "sizes.json"])
    assert result.exit_code == 0, result.output
    assert [file.name for file in tmp_path.iterdir()] == ["sizes.json"]
    record = json.loads((tmp_path / "sizes.json").read_text())
    rows = tables.read("table9/imagenet").rows if number == 9 else SHIPPED[number].rows
    for row, found in zip(rows, record["rows"], strict=True):
        expected = paper_size(**row.options)
        assert row.label == found["label"]
        assert found["ours"] == {"parameters": expected.parameters, "multiply_adds": expected.multiply_adds}
        assert found["paper"] == {**row.paper, **row.size}
        assert row.label in result.stdout
        assert f"{expected.parameters / 1e6:.1f}" in result.stdout
        assert f"{expected.multiply_adds / 1e9:.2f}" in result.stdout


def test_table_2_shows_the_networks_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = " ".join(CliRunner().invoke(main, ["table", "2"]).stdout.split())
    for words in ("1x1 100 | 7x7 LR 100 |", "1x1 64 | 3x3 64 | 1x1", "res5", "pooling, 1000"):
        assert words in text
    assert list(tmp_path.iterdir()) == []


# Training


def test_a_table_end_to_end(done):
    folder, result = done
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "t.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["LR-Net (G*)", "NL-26"]
    assert record["rows"][0]["paper"] == {"top1": 73.2, "top5": 91.1}
    assert record["seconds"] > 0
    for row, slug in zip(record["rows"], ("lr-net--g--", "nl-26"), strict=True):
        run = folder / "runs" / f"{slug}-regular" / "seed-4"
        model = load_model(run)
        (ours,) = row["ours"]["regular"]["clean"]["runs"]
        found = json.loads((run / "accuracy.json").read_text())
        assert ours == {**found, "train_seed": 4}
        assert ours["n"] == 20
        assert ours["weights_sha256"] == weights_hash(model)
        assert ours["parameters"] == sum(p.numel() for p in model.parameters())
        assert ours["multiply_adds"] == profile(model, torch.zeros(1, 1, 8, 8)).multiply_adds
        assert 0 <= ours["top1"] <= ours["top5"] <= 1
        low, high = ours["intervals"]["top5"]
        assert low < ours["top5"] < high or ours["top5"] == 1
        assert from_dict(row["config"]["regular"]) == from_dict(read_toml(run / "config.toml"))
        for text in (f"{100 * ours['top1']:.1f}", f"{100 * ours['top5']:.1f}", f"{ours['multiply_adds'] / 1e6:.1f}"):
            assert text in result.stdout
    words = " ".join(result.stdout.split())  # a long title is wrapped
    for text in ("73.2", "91.1", "47.7", "two networks", "20 test images"):
        assert text in words


def test_finished_work_is_not_repeated(done, toml):
    folder, _ = done
    weights = sorted((folder / "runs").rglob("weights.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    first = json.loads((folder / "t.json").read_text())
    assert invoke(toml, folder, "--limit", "20", "--jobs", "1").exit_code == 0
    assert [file.stat().st_mtime_ns for file in weights] == before
    assert json.loads((folder / "t.json").read_text())["rows"] == first["rows"]


def test_the_data_set_can_be_named(toml, tmp_path):
    result = invoke(toml, tmp_path, "--data", "npz:gone.npz", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path / "gone.npz") in result.stderr
    result = invoke(toml, tmp_path, "--data", "cifar11")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "cifar10" in result.stderr


@pytest.mark.parametrize("number", ["1", "10", "x"])
def test_tables_without_networks_are_refused(number):
    result = CliRunner().invoke(main, ["table", number])
    assert result.exit_code == 2
    assert "2" in result.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("titel='x'", "unknown key of a table 'titel': did you mean 'title'"),
        ("title=3", "title = 3: a string is needed"),
        ("train.epochs=3", r"train: .* say for which: regular\.train or adversarial\.train"),
        ("rows=[{label = 'x', model = {name = 'nl26'}, size = {parms = 3}}]", "'parms': did you mean 'params'"),
        ("rows=[{label = 'x', model = {name = 'nl26'}, paper = {clean = 3}}]", "'clean'"),
        ("rows=[{label = 'x', model = {name = 'nl26'}, size = 3}]", "size = 3"),
    ],
)
def test_mistakes_in_a_table_are_named(toml, override, words):
    with pytest.raises(InputError, match=words):
        tables.read(toml, [override])


def test_configs_of_networks_and_of_tables_are_not_interchangeable(tmp_path):
    with pytest.raises(InputError, match=r"mini: a table needs \[\[rows\]\]; to train one network, .* adv-train"):
        tables.read("lrnet26_fashion_mnist_mini")
    with pytest.raises(InputError, match=r"table9 holds the \[\[rows\]\] of a table.* run it with robust-lr table"):
        config.load("table9")


def test_attacks_need_a_training_regime(tmp_path):
    (tmp_path / "t.toml").write_text("protocols = ['none']\n[[rows]]\nlabel = 'x'\nmodel = { name = 'nl26' }\n")
    with pytest.raises(InputError, match=r"\[regular\] or \[adversarial\] is needed"):
        tables.read(tmp_path / "t.toml")


# Accuracy


@pytest.fixture
def pictures(toml):
    return load_data(f"npz:{toml.parent / 'small.npz'}", "test")


def test_top_k_is_counted_image_by_image(pictures):
    torch.manual_seed(1)
    model = build_model("resnet18", num_classes=8, in_channels=1, width=1 / 16, stem="small").train()
    shares = top_k(model, pictures, (1, 5, 8), batch_size=7)
    assert model.training
    model.eval()
    ranks = []
    for index in range(24):
        image, label, _ = pictures[index]
        logits = model(image[None])[0]
        ranks.append(int((logits > logits[label]).sum()))
    assert [share.count for share in shares] == [sum(rank < k for rank in ranks) for k in (1, 5, 8)]
    assert {share.n for share in shares} == {24}
    assert 0 < shares[0].count < shares[1].count < 24


def test_top_5_is_left_out_for_five_classes(tmp_path):
    data = load_data(f"npz:{small(tmp_path, classes=5).parent / 'small.npz'}", "test")
    found = measure(build_model("resnet18", num_classes=5, in_channels=1, width=1 / 16), data)
    assert found.top5 is None
    assert "top5" not in found.to_dict()
    assert found.hashes["images"] == content_hash(data)

"""Adversarial images that are kept: what verdicts were judged on, the same files after kill -9, judged anew."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import APGD, FMN, PGD, Cascade
from robust_lr.results.images import IMAGES, read_images
from robust_lr.utils.errors import InputError

EPS = 8 / 255
LAST = PGD(eps=EPS, step_size=2 / 255, steps=6, restarts=2)
QUICK = {"compute_batch": 16, "allow": tuple(GUARDS), "check": "off"}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(40)


def linear(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(400))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def model():
    return linear(0)


def files(run):
    """Hashes of the image files of an evaluation, or of all those in a folder."""
    found = run.rglob(f"{IMAGES}/*")
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


@pytest.mark.parametrize(
    "protocol",
    [
        LAST,
        dataclasses.replace(LAST, targeted=True),
        dataclasses.replace(LAST, criterion="worst", restarts=1),
        Cascade(parts=(dataclasses.replace(LAST, criterion="worst", name="pgd"), APGD(eps=EPS, steps=4))),
    ],
    ids=["last", "targeted", "worst", "cascade"],
)
def test_kept_images_are_those_that_the_verdicts_were_judged_on(tmp_path, data, model, protocol):
    result = rlr.evaluate(model, data, protocol, out=tmp_path, images=True, **QUICK)
    (images,) = read_images(tmp_path)
    rows = result.rows
    assert images.ids.tolist() == [row.id for row in rows] == data.ids.sort().values.tolist()
    assert images.labels.tolist() == [row.label for row in rows]
    clean = data.batch(torch.arange(len(data)))[0][data.ids.argsort()]
    assert float((images.float32 - clean).abs().max()) <= EPS + 1e-6
    assert torch.equal(images.uint8, (images.float32 * 255).round().byte())
    found = rlr.score(tmp_path, model)
    assert [prediction for _, _, prediction, _ in found.predictions] == [row.adversarial for row in rows]
    assert found.same_weights
    assert found.rounded == result.robust_rounded
    assert result.to_dict()["robust_accuracy_rounded"] == found.rounded.value
    if not protocol.targeted:
        assert found.accuracy == result.robust
    plain = rlr.evaluate(model, data, protocol, **QUICK)
    assert plain.robust_rounded is None
    same = {"seconds": 0.0, "forwards": 0, "robust_rounded": None}
    assert [dataclasses.replace(row, **same) for row in plain.rows] == [dataclasses.replace(r, **same) for r in rows]


def test_an_attack_in_the_fractions_of_a_level_is_lost_by_rounding(tmp_path):
    class Fraction(nn.Module):
        """Class 1 where the pixel is above its level by any fraction."""

        def forward(self, x):
            above = 100 * (x.flatten(1)[:, :1] - 100 / 255) - 0.01
            return torch.cat([-above, above], dim=1)

    data = rlr.data.from_arrays(torch.full((1, 1, 1), 100, dtype=torch.uint8), [0], num_classes=2)
    attack = PGD(eps=0.4 / 255, step_size=0.4 / 255, steps=1, start="clean")
    result = rlr.evaluate(Fraction(), data, attack, out=tmp_path, images=True, **QUICK)
    assert (result.robust.count, result.robust_rounded.count) == (0, 1)


def test_shards_are_the_same_for_any_batch_size_and_joined(tmp_path, data, model, monkeypatch):
    from robust_lr.results import images

    monkeypatch.setattr(images, "MAX_SHARD_IMAGES", 16)
    rlr.evaluate(model, data, LAST, out=tmp_path / "whole", images=True, **QUICK)
    assert len(files(tmp_path / "whole")) == 3
    rlr.evaluate(model, data, LAST, out=tmp_path / "small", images=True, batch_size=7, **QUICK)
    for i in (1, 2):
        rlr.evaluate(model, data, LAST, out=tmp_path / str(i), images=True, shard=(i, 2), **QUICK)
    rlr.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    for other in ("small", "joined"):
        assert files(tmp_path / other) == files(tmp_path / "whole")


KILLED_ATTACKS = {
    "pgd": LAST,
    "all targets": PGD(eps=EPS, step_size=2 / 255, steps=2, targeted=True),
    "apgd targeted": APGD(eps=EPS, steps=6, targeted=True),
    "fmn": FMN(eps=EPS, steps=6),
}

KILLED = """
import os, signal, sys
import robust_lr as rlr
from robust_lr.results import images
from robust_lr.results.ledger import Ledger
from tests.evaluation.test_saved_images import KILLED_ATTACKS, QUICK, linear

images.MAX_SHARD_IMAGES = 16
left = [0]

def deadly(function):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

attack = KILLED_ATTACKS[sys.argv[2]]
evaluate = rlr.attack_all_targets if sys.argv[2] == "all targets" else rlr.evaluate

def run(name, moment):
    child = os.fork()
    if child == 0:
        left[0] = moment
        evaluate(model, data, attack, out=f"{sys.argv[1]}/{name}", resume=True, images=True, **QUICK)
        os._exit(0)
    return os.waitpid(child, 0)[1]

images.write_atomic = deadly(images.write_atomic)  # before each file
Ledger.add = deadly(Ledger.add)  # and before each transaction
images._read = deadly(images._read)
model, data = linear(0), rlr.data.load("fashion-mnist-mini", "test").take(40)
assert run("whole", 0) == 0
for moment in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12):
    assert os.WTERMSIG(run(f"run{moment}", moment)) == signal.SIGKILL, moment
    assert run(f"run{moment}", 0) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("attack", KILLED_ATTACKS)
def test_images_are_the_same_files_after_kill_9_at_ten_moments(tmp_path, attack):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), attack]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = files(tmp_path / "whole")
    assert len(whole) == (9 * 3 if attack == "all targets" else 3)
    runs = list(tmp_path.glob("run*"))
    assert len(runs) == 10
    for run in runs:
        assert files(run) == whole


def test_transfer_judges_each_models_images_by_every_model(tmp_path, data, model):
    other = linear(1)
    for name, each in (("a", model), ("b", other)):
        rlr.evaluate(each, data, LAST, out=tmp_path / name, images=True, **QUICK)
    found = rlr.transfer([tmp_path / "a", tmp_path / "b"], {"a": model, "b": other})
    for i, run in enumerate("ab"):
        for j, each in enumerate((model, other)):
            assert found.scores[i][j].accuracy == rlr.score(tmp_path / run, each).accuracy
        assert found.scores[i][i].same_weights
    assert found.scores[0][1].accuracy.count > found.scores[0][0].accuracy.count  # white-box is the stronger attack
    with pytest.raises(InputError, match=r"'b' does not have the weights that .*a attacked"):
        rlr.transfer([tmp_path / "a", tmp_path / "b"], {"b": other, "a": model})
    rlr.evaluate(model, data.take(20), LAST, out=tmp_path / "few", images=True, **QUICK)
    with pytest.raises(InputError, match="are of different images"):
        rlr.transfer([tmp_path / "a", tmp_path / "few"], {"a": model, "few": model})


def test_images_that_are_missing_damaged_or_of_an_unfinished_run_are_refused(tmp_path, data, model):
    with pytest.raises(InputError, match="`images` are saved in a folder: give `out`"):
        rlr.evaluate(model, data, LAST, images=True, **QUICK)
    rlr.evaluate(model, data, LAST, out=tmp_path / "plain", **QUICK)
    with pytest.raises(InputError, match="holds no adversarial images"):
        rlr.score(tmp_path / "plain", model)
    with pytest.raises(InputError, match="saved_images was False and is True"):
        rlr.evaluate(model, data, LAST, out=tmp_path / "plain", resume=True, images=True, **QUICK)
    rlr.evaluate(model, data, LAST, out=tmp_path / "run", images=True, **QUICK)
    with pytest.raises(InputError, match="the model returns"):
        rlr.score(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(784, 7)))
    (file,) = (tmp_path / "run" / IMAGES).iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # among the pixels
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match="does not match its saved hash"):
        rlr.score(tmp_path / "run", model)
    (file.parent / "part-1.safetensors").write_bytes(bytes(content))
    with pytest.raises(InputError, match="is not complete: run the same command again"):
        rlr.score(tmp_path / "run", model)

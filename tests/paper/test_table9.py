import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from helpers import noise

from robust_lr import config as config_room
from robust_lr import protocols
from robust_lr.cli import main
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import WEIGHTS, load_model, weights_hash
from robust_lr.models.cost import profile
from robust_lr.paper import jobs as jobs_room
from robust_lr.paper import tables
from robust_lr.training.run_folder import read_metrics
from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.toml import read_toml

TABLE = """
seed = 4
protocols = ["lrnet-targeted", "lrnet-untargeted"]

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

[adversarial]
check = "off"

[adversarial.attack]
protocol = "lrnet-train"
steps = 2

[adversarial.train]
epochs = 1
batch_size = 8
device = "cpu"

[[rows]]
label = "ResNet-18"
model = {{ name = "resnet18" }}
paper = {{ clean = 44.9, lrnet-targeted = 37.9, lrnet-untargeted = 14.4, regular-clean = 72.8 }}

[[rows]]
label = "LR-Net (3x3)"
model = {{ name = "lrnet26", kernel_size = 3 }}
"""


@pytest.fixture(scope="module")
def toml(tmp_path_factory):
    """A table of two small networks on 24 small pictures."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "small.toml").write_text(TABLE.format(data=noise(folder / "small.npz", 8, 3, both=24)))
    return folder / "small.toml"


def invoke(toml, folder, *arguments):
    common = ["table9", "--config", str(toml), "--out", str(folder / "runs"), "--json", str(folder / "table9.json")]
    return CliRunner().invoke(main, [*common, *arguments])


def comparable(record):
    """A record without what differs between two runs of the same work."""
    of_the_run = ("device", "date", "command", "commit", "read_from_ledger")
    if isinstance(record, dict):
        kept = {key: value for key, value in record.items() if "seconds" not in key and key not in of_the_run}
        return {key: comparable(value) for key, value in kept.items()}
    return [comparable(value) for value in record] if isinstance(record, list) else record


@pytest.fixture
def two_minutes():
    """A test that waits for processes fails instead of waiting for ever."""

    def stop(number, frame):
        raise TimeoutError("still waiting after two minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def done(toml, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, invoke(toml, folder, "--limit", "20")


# The shipped table


def test_the_shipped_table_is_the_paper_s():
    table = tables.read("table9")
    assert table.protocols == ["lrnet-targeted", "lrnet-untargeted"]
    assert [row.label for row in table.rows] == ["ResNet-26", "ResNet-50", "LR-Net-26"]
    assert [row.configs["regular"].model["name"] for row in table.rows] == ["resnet26", "resnet50", "lrnet26"]
    columns = ("clean", "lrnet-targeted", "lrnet-untargeted", "regular-clean")
    assert [[row.paper[column] for column in columns] for row in table.rows] == [
        [44.9, 37.9, 14.4, 72.8],
        [52.0, 43.0, 22.5, 76.3],
        [52.1, 44.2, 26.8, 75.7],
    ]
    for row in table.rows:
        assert row.configs["regular"].attack == protocols.get("none")
        attack = row.configs["adversarial"].attack
        assert (attack.eps, attack.targeted, attack.steps) == (16 / 255, True, 4)
        assert row.configs["adversarial"].model["stem"] == "stride2"
        assert {c.data.name for c in row.configs.values()} == {"fashion-mnist-mini"}
        assert {c.model["width"] for c in row.configs.values()} == {table.rows[0].configs["regular"].model["width"]}


def test_the_networks_of_the_shipped_table_have_one_recipe_and_lr_net_costs_what_resnet_26_does():
    rows = tables.read("table9").rows
    for regime in ("regular", "adversarial"):
        trained = {str((c.attack, c.data, replace(c.train, lr=1.0))) for c in (row.configs[regime] for row in rows)}
        assert len(trained) == 1
    with torch.device("meta"):
        costs = [
            profile(build_model(**row.model, num_classes=10, in_channels=1), torch.empty(1, 1, 28, 28)).multiply_adds
            for row in (rows[0], rows[2])
        ]
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


def test_adv_train_takes_the_paper_s_attack_and_the_network_of_the_table():
    config = config_room.load("lrnet26_fashion_mnist_mini")
    attack = config.attack
    assert (attack.name, attack.steps, attack.step_size, attack.eps) == ("lrnet-train", 16, 1 / 255, 16 / 255)
    row = tables.read("table9").rows[2].configs["adversarial"]
    assert (config.model, config.data, config.train) == (row.model, row.data, row.train)
    shipped = {name: tensor.shape for name, tensor in load_model().state_dict().items()}
    fresh = build_model(**config.model, num_classes=10, in_channels=1).state_dict()
    assert shipped == {name: tensor.shape for name, tensor in fresh.items()}


# Reading


def test_rows_share_sections_and_regimes_have_their_own(toml):
    table = tables.read(toml)
    resnet, lrnet = table.rows
    assert lrnet.configs["regular"].model == {"width": 0.0625, "stem": "small", "name": "lrnet26", "kernel_size": 3}
    assert resnet.configs["regular"].train.epochs == 2
    assert resnet.configs["adversarial"].train.epochs == 1
    assert resnet.configs["adversarial"].attack.steps == 2
    assert {c.seed for row in table.rows for c in row.configs.values()} == {4}
    assert lrnet.paper == {}


def test_overrides_reach_all_rows_or_one_regime(toml):
    table = tables.read(toml, ["model.width=0.125", "adversarial.train.epochs=3", "seed=9"])
    for row in table.rows:
        assert {c.model["width"] for c in row.configs.values()} == {0.125}
        assert {c.seed for c in row.configs.values()} == {9}
        assert (row.configs["adversarial"].train.epochs, row.configs["regular"].train.epochs) == (3, 2)


def test_a_regime_may_change_one_value_of_a_shared_section(toml):
    (row, _) = tables.read(toml, ["adversarial.data.augment=flip", "regular.model.width=0.125"]).rows
    assert row.configs["adversarial"].data.name == row.configs["regular"].data.name
    assert row.configs["adversarial"].data.augment == "flip"
    assert row.configs["regular"].model["width"] == 0.125
    assert row.configs["adversarial"].model["width"] == 0.0625


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", "'sed': did you mean 'seed'"),
        ("regular.train.epoch=1", "'epoch': did you mean 'epochs'"),
        ("adversarial.atack.eps=0.1", "'atack': did you mean 'attack'"),
        ("model.num_classes=3", "num_classes comes from the data set"),
        ("adversarial.attack.eps=16", "eps = 16 is outside"),
        ("protocols=[]", "unknown column of .*paper 'clean'"),
        ("rows=[]", r"needs \[\[rows\]\]"),
        ("protocols=['lrnet']", "unknown protocol 'lrnet'"),
        ("protocols=lrnet-targeted", "protocols = 'lrnet-targeted'"),
        ("protocols=['lrnet-targeted', 'lrnet-targeted']", "lrnet-targeted.*twice"),
        ("rows=3", "rows"),
        ("model=3", "model = 3"),
        ("regular=3", "regular = 3"),
        ("regular.check=none", r"check in \[regular\] 'none'.*off"),
        ("rows=[3]", "rows"),
        ("rows=[{model = {name = 'resnet18'}}]", "label"),
        ("rows=[{label = 'x'}]", "model"),
        ("rows=[{label = 3, model = {name = 'resnet18'}}]", "label = 3"),
        ("rows=[{label = 'x', model = {name = 'resnet18'}, papr = {}}]", "'papr'.*'paper'"),
        ("rows=[{label = 'x', model = {name = 'resnet18'}, paper = {clan = 3}}]", "'clan'.*'clean'"),
        ("rows=[{label = 'x', model = {name = 'resnet18'}, paper = {clean = 'high'}}]", "'high'"),
        (
            "rows=[{label = 'x y', model = {name = 'resnet18'}}, {label = 'X-Y', model = {name = 'resnet26'}}]",
            "same folder",
        ),
    ],
)
def test_mistakes_in_a_table_are_named(toml, override, words):
    with pytest.raises(InputError, match=words):
        tables.read(toml, [override])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no config file .*table9"):
        tables.read(tmp_path / "table9.toml")


def test_every_network_is_a_job_under_every_regime_long_jobs_first(toml, tmp_path):
    jobs = tables.make_jobs(tables.read(toml, limit=7), tmp_path)
    assert [job.name for job in jobs] == [
        "ResNet-18 adversarial, seed 4",
        "LR-Net (3x3) adversarial, seed 4",
        "ResNet-18 regular, seed 4",
        "LR-Net (3x3) regular, seed 4",
    ]
    assert len({job.folder for job in jobs}) == 4
    assert {job.folder.parent.parent for job in jobs} == {tmp_path}
    assert {job.limit for job in jobs} == {7}
    adversarial, regular = jobs[0], jobs[2]
    assert adversarial.config.attack.steps == 2
    assert regular.config.attack.steps == 0
    assert replace(
        adversarial, config=replace(adversarial.config, attack=protocols.get("lrnet-train"))
    ).estimated_work() > 2 * (regular.estimated_work() - adversarial.estimated_work())


def test_jobs_begin_with_the_networks_that_cost_most(toml, tmp_path):
    table = tables.read(toml)
    slow = replace(table.rows[1], size={"flops": 4.0})
    jobs = tables.make_jobs(replace(table, rows=[table.rows[0], slow]), tmp_path)
    assert [job.label for job in jobs] == ["LR-Net (3x3)", "ResNet-18"] * 2


def test_a_regime_says_how_its_results_are_probed(toml):
    table = tables.read(toml)
    assert {attack.check for attack in table.attacks("regular", 0)} == {None}
    assert {attack.check for attack in table.attacks("adversarial", 0)} == {"off"}
    table = tables.read(toml, ["regular.check=off", "adversarial.check=default"])
    assert {attack.check for attack in table.attacks("regular", 0)} == {"off"}
    assert {attack.check for attack in table.attacks("adversarial", 0)} == {"default"}


# Running


def test_a_table_end_to_end(done, toml):
    folder, result = done
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "table9.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["ResNet-18", "LR-Net (3x3)"]
    assert record["rows"][0]["paper"]["lrnet-untargeted"] == 14.4
    assert record["seconds"] > 0
    for row, slug in zip(record["rows"], ("resnet-18", "lr-net--3x3-"), strict=True):
        for regime in ("regular", "adversarial"):
            run = folder / "runs" / f"{slug}-{regime}" / "seed-4"
            assert len(read_metrics(run)) == (6 if regime == "regular" else 3)
            for name in ("lrnet-targeted", "lrnet-untargeted"):
                (ours,) = row["ours"][regime][name]["runs"]
                assert ours.pop("train_seed") == 4
                assert ours["n"] == 20
                assert ours["seed"] == 4
                assert (ours["verdict"] is None) == (regime == "adversarial")  # whose check is "off"
                assert ours["protocol"] == protocols.get(name).values()
                assert ours["weights_sha256"] == weights_hash(load_model(run))
                assert ours == json.loads((run / "attacks" / name / "result.json").read_text())
    for figure in ("44.9", "37.9", "14.4", "72.8", "ResNet-18", "LR-Net (3x3)", "20 test images"):
        assert figure in result.stdout
    clean = record["rows"][0]["ours"]["adversarial"]["lrnet-targeted"]["runs"][0]["clean_accuracy"]
    assert f"{100 * clean:.1f}" in result.stdout
    assert "ResNet-18 regular" in result.stderr


def test_a_finished_job_is_read_from_disk(done, toml):
    folder, _ = done
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "result.json"]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    for number, job in enumerate(tables.make_jobs(tables.read(toml, limit=20), folder / "runs")):
        events = []
        jobs_room.run_job(number, job, events.append)
        assert "train" not in {event.kind for event in events}
        for name, result in (event.detail for event in events if event.kind == "result"):
            assert result.to_dict() == json.loads((job.folder / "attacks" / name / "result.json").read_text())
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files} == before


@pytest.mark.slow
def test_several_training_runs_are_compared(toml, tmp_path):
    """Two runs of each network: means, claims and stronger attacks; a third run keeps the first two."""
    text = toml.read_text().replace("[regular.attack]\n", "[regular]\nruns = 1\n[regular.attack]\n")
    small = text[: text.index("[[rows]]")]
    for label, rate in {"A": 0.01, "B": 0.1}.items():
        small += f'[[rows]]\nlabel = "{label}"\nmodel = {{ name = "resnet18" }}\nadversarial.train.lr = {rate}\n'
    small += '[[stronger]]\nname = "pgd-3"\nprotocol = "lrnet-untargeted"\nsteps = 3\nlimit = 10\ncheck = "off"\n'
    small += '[[claims]]\nfirst = "A"\nsecond = "B"\nattack = "pgd-3"\nfigure = "worst-seen"\npaper = 1.0\n'
    (tmp_path / "two.toml").write_text(small)
    result = invoke(tmp_path / "two.toml", tmp_path, "--seeds", "2", "--jobs", "1")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "table9.json").read_text())
    (claim,) = record["claims"]
    assert len(claim["per_run"]) == 2
    assert claim["images"] == 10
    ours = record["rows"][0]["ours"]["adversarial"]["lrnet-untargeted"]
    assert [run["train_seed"] for run in ours["runs"]] == [4, 5]
    assert ours["over_runs"]["robust"]["per_run"] == [run["robust_accuracy"] for run in ours["runs"]]
    regular = record["rows"][0]["ours"]["regular"]["lrnet-untargeted"]
    assert [run["train_seed"] for run in regular["runs"]] == [4]
    assert regular["runs"][0]["verdict"] is not None
    assert record["rows"][0]["ours"]["adversarial"]["pgd-3"]["runs"][0]["verdict"] is None  # check = "off"
    for words in ("mean of 2 training runs", "regular training: one run", "pgd-3", "The paper's claims", "A over B"):
        assert words in " ".join(result.stdout.split())
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.safetensors")}
    assert invoke(tmp_path / "two.toml", tmp_path, "--seeds", "3", "--jobs", "1").exit_code == 0
    assert len(json.loads((tmp_path / "table9.json").read_text())["claims"][0]["per_run"]) == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before


def interrupt(toml, folder, stop):
    """Run the command in a process and session of its own, stop it while its second job trains; code and stderr."""
    command = [sys.executable, "-m", "robust_lr", "table9", "--config", str(toml), "--limit", "20", "--jobs", "1"]
    command += ["--out", str(folder / "runs"), "--json", str(folder / "table9.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: more threads round otherwise
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    try:
        while (
            run.poll() is None
            and not (folder / "runs" / "lr-net--3x3--adversarial" / "seed-4" / "metrics.jsonl").exists()
        ):
            time.sleep(0.01)
        stop(run)
        error = run.communicate()[1]  # ends when the workers have closed the pipe too
    except TimeoutError:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in error
    assert not (folder / "table9.json").exists()
    return run.returncode, error


def test_ctrl_c_saves_the_state_and_the_same_command_continues(done, toml, tmp_path, two_minutes):
    def press(run):
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the workers get it too

    code, error = interrupt(toml, tmp_path, press)
    assert code == 130
    assert error.splitlines()[-1].startswith("robust-lr: stopped by SIGINT")
    first = tmp_path / "runs" / "resnet-18-adversarial" / "seed-4" / WEIGHTS
    before = first.stat().st_mtime_ns

    result = invoke(toml, tmp_path, "--limit", "20", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert first.stat().st_mtime_ns == before
    one, other = (json.loads((folder / "table9.json").read_text()) for folder in (tmp_path, done[0]))
    assert comparable(one) == comparable(other)


def test_sigterm_stops_the_workers_too(toml, tmp_path, two_minutes):
    assert interrupt(toml, tmp_path, subprocess.Popen.terminate)[0] == 143


def test_the_error_of_a_job_reaches_the_user(toml, tmp_path):
    result = invoke(toml, tmp_path, "--set", "adversarial.train.lr=1e30", "--set", "adversarial.train.warmup_epochs=0")
    assert result.exit_code == 1
    assert "adversarial, seed 4: the loss became" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "table9.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "data.name=npz:gone.npz"], ["gone.npz"]),
        (["--set", "model.stem=huge"], ["'huge'"]),
        (["--set", "model.border=zero"], ["'border'", "resnet18"]),
        (["--set", "regular.train.batch_size=100"], ["batch_size = 100", "24"]),
        (["--set", "regular.train.device=tpu"], ["'tpu'"]),
        (["--limit", "25"], ["limit = 25", "24 images"]),
        (["--limit", "-1"], ["limit = -1"]),
        (["--jobs", "-1"], ["jobs = -1"]),
        (["--set", "rows=3"], ["rows"]),
        (["--set", "x"], ["section.key=value"]),
        (["--config", "gone"], ["'gone'", "table9"]),
    ],
)
def test_bad_input_is_named_before_any_work(toml, tmp_path, monkeypatch, arguments, words):
    def start(method):
        raise AssertionError("workers are started")

    monkeypatch.setattr(jobs_room.multiprocessing, "get_context", start)
    result = invoke(toml, tmp_path, *arguments)
    assert result.exit_code == 2, result.exception
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stop", "words"), [("kill", "exit code -9"), ("terminate", "stopped by SIGTERM")])
def test_a_worker_that_is_stopped_ends_the_table(toml, tmp_path, two_minutes, stop, words):
    todo = tables.make_jobs(tables.read(toml, ["adversarial.train.epochs=50"]), tmp_path)
    run = jobs_room.run(todo, workers=1)
    job, event = next(run)
    assert (job.name, event.kind, event.done) == ("ResNet-18 adversarial, seed 4", "train", 1)
    (worker,) = multiprocessing.active_children()
    getattr(worker, stop)()
    with pytest.raises(RunError, match=words):
        list(run)
    assert not worker.is_alive()


def test_jobs_train_the_same_weights_as_adv_train(done, toml):
    folder, _ = done
    (row, _) = tables.read(toml).rows
    saved = config_room.from_dict(read_toml(folder / "runs" / "resnet-18-regular" / "seed-4" / "config.toml"))
    assert saved == row.configs["regular"]

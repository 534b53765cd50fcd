import tomllib
from dataclasses import replace

import pytest

from robust_lr import config, protocols
from robust_lr.config.sections import DataConfig, TrainConfig
from robust_lr.config.training import CONFIGS, Config, from_dict, holds_rows, load, split_sections, to_dict, to_toml
from robust_lr.utils.errors import InputError

SHIPPED = sorted(config.shipped())
RUNS = [name for name in SHIPPED if not holds_rows(name)]


def test_the_imagenet_config_has_the_paper_s_schedule():
    c = load("imagenet/lrnet26_adv")
    assert (c.train.lr, c.train.momentum, c.train.weight_decay) == (0.4, 0.9, 1e-4)
    assert (c.train.epochs, c.train.batch_size, c.train.warmup_epochs) == (110, 1024, 5)
    assert c.train.milestones == (30, 60, 90)
    assert c.model == {"name": "lrnet26", "width": 1.0, "stem": "imagenet"}
    assert (c.data.name, c.data.augment) == ("imagenet", "imagenet")
    assert c.attack == protocols.get("lrnet-train")
    assert (c.attack.targeted, c.attack.steps, c.attack.eps) == (True, 16, 16 / 255)


@pytest.mark.parametrize("name", ["lrnet26", "resnet26", "resnet50"])
def test_each_network_of_table_9_has_an_adversarial_and_a_regular_imagenet_config(name):
    adversarial, regular = (load(f"imagenet/{name}_{kind}") for kind in ("adv", "regular"))
    assert adversarial.model["name"] == name
    assert adversarial == replace(load("imagenet/lrnet26_adv"), model=adversarial.model)
    assert regular == replace(adversarial, attack=protocols.get("none"))
    for kind in ("adv", "regular"):
        header = CONFIGS.joinpath("imagenet", f"{name}_{kind}.toml").read_text()
        assert f"-m robust_lr adv-train imagenet/{name}_{kind} " in header


def test_defaults_are_the_paper_s_schedule_on_the_embedded_data():
    assert TrainConfig() == load("imagenet/lrnet26_adv").train
    assert load().data == DataConfig(name="fashion-mnist-mini")


@pytest.mark.parametrize("name", RUNS)
def test_shipped_configs_survive_a_round_trip_through_toml(name):
    before = load(name)
    after = from_dict(tomllib.loads(to_toml(before)))
    assert after == before
    assert from_dict(to_dict(before)) == before
    assert hash(after.train) == hash(before.train)


def test_unusual_values_survive_a_round_trip_through_toml():
    odd = ['data.root=C:\\da"ta\n\t\u00e9\U0001f600', "train.weight_decay=1e-12", "model.mean=[0.1, 0.2, 0.3]"]
    before = load(None, [*odd, "model.name=lrnet26", "train.milestones=[]", "attack.eps=0.1", "seed=4294967295"])
    assert before.data.root == 'C:\\da"ta\n\t\u00e9\U0001f600'
    assert before.model["mean"] == (0.1, 0.2, 0.3)
    assert from_dict(tomllib.loads(to_toml(before))) == before


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_found_by_name_and_path(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert config.find(name) == config.find(f"{name}.toml") == config.find(f"configs/{name}.toml")
    assert config.find(CONFIGS / f"{name}.toml").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "mine/imagenet/lrnet26_adv.toml",
        "/configs/imagenet/lrnet26_adv",
        "lrnet26_adv",
        "../configs/table9",
        "missing",
        ".",
    ],
)
def test_a_missing_path_is_never_replaced_by_a_shipped_file(name):
    with pytest.raises(InputError, match=r"no config file .*imagenet/lrnet26_adv"):
        load(name)


def test_a_user_s_file_takes_precedence_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table9.toml").write_text("seed = 7\n[model]\nname = 'lrnet26'")
    assert load("table9.toml").seed == 7


@pytest.mark.parametrize("content", [b"seed = ", b"seed = \xff", b"[train]\nlr = 1\nlr = 2"])
def test_files_that_are_not_toml_are_named(tmp_path, content):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.toml: not valid TOML"):
        load(file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=x", "^seed = 'x': a whole number"),
        ("modle.name=x", r"unknown key 'modle': did you mean 'model'"),
        ("data.nmae=x", r"unknown key in \[data\] 'nmae': did you mean 'name'"),
        ("attack.epss=0.1", r"unknown key in \[attack\] 'epss': did you mean 'eps'"),
        ("attack.protocl=none", r"unknown key in \[attack\] 'protocl': did you mean 'protocol'"),
        ("train.epoch=1", r"unknown key in \[train\] 'epoch': did you mean 'epochs'"),
        ("rows=1", r"unknown key 'rows': choose one of seed, model, data, attack, train, valid"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_one(override, words):
    with pytest.raises(InputError, match=words):
        load("imagenet/lrnet26_adv", [override])


KEYS = {
    "a whole number": "seed data.workers data.limit attack.steps attack.restarts train.epochs train.batch_size "
    "attack.eot attack.smoothing train.threads train.lr_images validation.images validation.every "
    "compute.micro_batch output.keep",
    "a number": "attack.momentum attack.diversity train.lr train.warmup_epochs train.momentum train.weight_decay "
    "train.beta train.mix train.clean_start train.label_smoothing train.eps_warmup_epochs train.ema "
    "validation.max_drop",
    "a string": "data.name data.root data.augment attack.norm attack.loss attack.label attack.start attack.target "
    "attack.criterion attack.name attack.source train.device data.unreadable train.loss train.schedule "
    "validation.protocol compute.precision compute.attack_precision compute.compile",
    "true or false": "attack.targeted compute.sync_batchnorm output.tensorboard",
    "a list": "attack.record train.milestones",
}
WRONG = {
    "a whole number": ["1.5", "true", "x"],
    "a number": ["true", "x", "[1]"],
    "a string": ["1", "true", "2020-01-01"],
    "true or false": ["1", "yes"],
    "a list": ["1", "x"],
}


def test_the_table_of_types_names_every_key():
    known = {f"{name}.{key}" for name, part in split_sections(Config()).items() for key in vars(part)}
    fractions = {"attack.eps", "attack.step_size"}
    assert set(" ".join(KEYS.values()).split()) | fractions == known | {"seed"}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in KEYS.items() for key in keys.split()])
def test_every_key_is_typed(kind, key):
    for value in WRONG[kind]:
        with pytest.raises(InputError, match=rf"{key} = .*: {kind} is needed"):
            load("imagenet/lrnet26_adv", [f"{key}={value}"])


def test_items_of_a_list_are_typed():
    with pytest.raises(InputError, match=r"train.milestones = 1.5: a whole number is needed"):
        load("imagenet/lrnet26_adv", ["train.milestones=[1.5]"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed = -1: must be between 0 and"),
        ("seed=4294967296", "seed = 4294967296"),
        ("data.augment=flop", "unknown augmentation 'flop': did you mean 'flip'"),
        ("data.workers=-1", "workers = -1: must be at least 0"),
        ("data.limit=-1", "limit = -1: must be at least 0"),
        ("train.epochs=0", "epochs = 0: must be at least 1"),
        ("train.batch_size=1", "batch_size = 1: must be at least 2"),
        ("train.lr=-0.1", "lr = -0.1: must be at least 0"),
        ("train.lr=nan", "lr = nan: must be at least 0"),
        ("train.lr=inf", "lr = inf: must be at least 0 and finite"),
        ("train.weight_decay=nan", "weight_decay = nan"),
        ("train.weight_decay=inf", "weight_decay = inf"),
        ("train.warmup_epochs=-1", "warmup_epochs = -1"),
        ("train.warmup_epochs=inf", "warmup_epochs = inf"),
        ("train.threads=-2", "threads = -2"),
        ("train.momentum=1", r"momentum = 1.0: must be in \[0, 1\)"),
        ("train.momentum=nan", "momentum = nan"),
        ("train.milestones=[60, 30]", r"milestones = \[60, 30\]: must be increasing"),
        ("train.milestones=[30, 30]", "milestones"),
        ("train.milestones=[0]", "milestones"),
        ("attack.eps=16", "eps = 16 is outside .*write 16/255"),
        ("attack.eps=-0.1", "eps = -0.1 is outside"),
        ("attack.eps=nan", "eps = nan is outside"),
        ("attack.eps=sixteen", "attack.eps = 'sixteen': a number or a fraction like 16/255"),
        ("attack.eps=1/0", "attack.eps = '1/0'"),
        ("attack.step_size=2", "step_size = 2 is outside"),
        ("attack.steps=-1", "steps = -1"),
        ("attack.start=zero", "unknown start 'zero': choose one of uniform, clean"),
        ("attack.target=best", "unknown target 'best': choose one of uniform, least-likely"),
        ("attack.restarts=3", "attack.restarts = 3"),
        ("attack.protocol=lrnet", "unknown protocol 'lrnet'"),
        ("attack.protocol=5", "unknown protocol 5"),
        ("model.num_classes=3", "model.num_classes comes from the data set"),
        ("model.in_channels=3", "model.in_channels comes from the data set"),
        ("model=resnet18", r"model = 'resnet18': a \[model\] table is needed"),
        ("train=1", r"train = 1: a \[train\] table is needed"),
    ],
)
def test_values_out_of_range_are_named(override, words):
    with pytest.raises(InputError, match=words):
        load("imagenet/lrnet26_adv", [override])


def test_a_model_needs_a_name():
    with pytest.raises(InputError, match="no name"):
        load(None, ["model.width=0.5"])


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.=3", ".epochs=3", "train..epochs=3", "", "seed.x=3"])
def test_malformed_overrides_are_named(override):
    with pytest.raises(InputError, match="overrides"):
        load("imagenet/lrnet26_adv", [override])


def test_overrides_take_numbers_strings_lists_and_fractions():
    c = load(
        "imagenet/lrnet26_adv",
        [
            "seed=3",
            "train.lr = 1",  # spaces, and an integer where a float is meant
            "train.milestones=[1, 2]",
            "data.name=fashion-mnist-mini",
            "data.root='with = and #'",
            "data.augment=flip-crop",
            "model.border=zero",
            "model.kernel_size=5",
            "attack.eps=8/255",
            "attack.step_size=0.01",
            "attack.targeted=false",
        ],
    )
    assert (c.seed, c.train.lr, c.train.milestones) == (3, 1.0, (1, 2))
    assert isinstance(c.train.lr, float)
    assert (c.data.name, c.data.root, c.data.augment) == ("fashion-mnist-mini", "with = and #", "flip-crop")
    assert (c.model["border"], c.model["kernel_size"], c.model["name"]) == ("zero", 5, "lrnet26")
    assert (c.attack.eps, c.attack.step_size, c.attack.targeted) == (8 / 255, 0.01, False)


def test_the_last_override_of_a_key_counts():
    assert load(None, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_a_protocol_keeps_its_name_until_a_value_changes():
    assert load(None, ["attack.protocol=madry-cifar10"]).attack is protocols.get("madry-cifar10")
    changed = load(None, ["attack.protocol=madry-cifar10", "attack.steps=3"]).attack
    assert changed == replace(
        protocols.get("madry-cifar10"), steps=3, name="madry-cifar10,steps=3", source="madry-cifar10 with changes"
    )


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        load().seed = 1


def test_another_network_keeps_only_the_shared_options(tmp_path):
    file = tmp_path / "net.toml"
    file.write_text('[model]\nname = "lrnet26"\nwidth = 0.125\nkernel_size = 5\nchannels_per_group = 1\n')
    assert load(file, ["model.name=resnet26"]).model == {"name": "resnet26", "width": 0.125}
    given = load(file, ["model.name=resnet26", "model.kernel_size=3"]).model
    assert given == {"name": "resnet26", "width": 0.125, "kernel_size": 3}
    same = load(file, ["model.name=lrnet26"]).model
    assert same == {"name": "lrnet26", "width": 0.125, "kernel_size": 5, "channels_per_group": 1}

import dataclasses
import tomllib

import pytest
from click.testing import CliRunner

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.config import training
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import files
from robust_lr.protocols.files import from_values, to_toml
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import PROTOCOLS, SWEEPS
from robust_lr.utils.errors import InputError


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "100"})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_comes_back_from_its_toml_and_its_values(name):
    protocol = PROTOCOLS[name]
    assert from_values(protocol.values()) == protocol
    assert from_values(tomllib.loads(to_toml(protocol, "# a comment\n"))) == protocol


def test_distances_are_written_as_fractions_where_they_are_some():
    text = to_toml(PGD(eps=16 / 255, step_size=0.007, steps=3, source='a "quoted" source'))
    assert 'eps = "16/255"\nstep_size = 0.007\n' in text
    assert tomllib.loads(text)["source"] == 'a "quoted" source'


@pytest.mark.parametrize("name", [*PROTOCOLS, *SWEEPS])
def test_the_command_prints_every_value_and_its_source(name):
    result = invoke("protocol", name)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    protocol = (PROTOCOLS | SWEEPS)[name]

    def look(values):
        assert values["source"].split()[0] in text
        for key, value in values.items():
            if key == "parts":
                for part in value:
                    look(part)
            elif key == "options":
                assert all(option in text for option in value)
            elif key in ("eps", "step_size") and values["norm"] == "linf":
                assert f"{key} {value * 255:.6g}/255 = {value:.6g}" in text
            elif key not in ("name", "source"):
                assert key in text

    look(protocol.values())


def test_what_is_printed_as_toml_is_taken_back_edited(tmp_path):
    text = invoke("protocol", "madry-cifar10", "--toml").output
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert files.load_protocol(str(file)) == PROTOCOLS["madry-cifar10"]
    file.write_text(text.replace("steps = 20", "steps = 7").replace('name = "madry-cifar10"\n', ""))
    expected = dataclasses.replace(PROTOCOLS["madry-cifar10"], steps=7, name="mine")
    assert files.load_protocol(str(file)) == expected
    assert invoke("protocol", file).output.split()[0] == "mine"
    assert files.from_table({"protocol": str(file), "restarts": 2}).restarts == 2
    assert training.read_attack({"protocol": str(file)}) == expected


def test_a_file_may_change_a_named_protocol(tmp_path):
    file = tmp_path / "longer.toml"
    file.write_text('protocol = "madry-cifar10"\nsteps = 100\neps = "4/255"\n')
    found = files.load_protocol(str(file))
    assert (found.name, found.steps, found.eps, found.step_size) == ("longer", 100, 4 / 255, 2 / 255)
    assert found.source == "madry-cifar10 with changes"


def test_an_attack_under_a_file_says_all_its_values(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('attack = "pgd"\neps = "8/255"\nstep_size = "4/255"\nsteps = 2\nsource = "a paper"\n')
    arguments = ["attack", "--protocol", file, "--limit", 8, "--out", tmp_path / "out", "--threads", 1]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    expected = PGD(eps=8 / 255, step_size=4 / 255, steps=2, source="a paper", name="mine")
    from_file = rlr.evaluate(rlr.load_model(), rlr.data.load(split="test").take(1), expected)
    assert from_file.protocol == expected.values()
    assert '"name": "mine"' in (tmp_path / "out" / "result.json").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 3", "give either attack, e.g. 'pgd', and all its values, or protocol = NAME"),
        ('attack = "pgd"\nprotocol = "none"', "give either attack"),
        ('attack = "pdg"\neps = 0.1', "unknown attack 'pdg': did you mean 'pgd'"),
        ("attack = 3", "attack = 3: say which"),
        ('attack = "pgd"\neps = 0.1\nsteps = 3', "step_size is missing"),
        ('attack = "pgd"\neps = 8\nstep_size = 0.1\nsteps = 3', "eps = 8 is outside"),
        ('attack = "pgd"\neps = "8/0"\nstep_size = 0.1\nsteps = 3', "eps = '8/0': a number or a fraction"),
        ('attack = "pgd"\neps = 0.1\nstep_size = 0.1\nsteps = "3"', "steps = '3': a whole number is needed"),
        ('attack = "pgd"\neps = 0.1\nstep_size = 0.1\nsteps = 3\nepsilon = 1', "did you mean 'eps'"),
        ('attack = "apgd"\neps = 0.1\ncriterion = "last"', "criterion = 'last': this kind of attack has 'worst'"),
        ('attack = "cascade"', "a cascade needs a .* table"),
        (
            'attack = "cascade"\neps = 0.2\n[[parts]]\nattack = "apgd"\neps = 0.1',
            r"eps = 0\.2: .* has 0\.1",
        ),
        ('attack = "torchattacks CW"\neps = 0.5\noptions = 3', "an .options. table is needed"),
        ('protocol = "madry-cifar11"', "unknown protocol 'madry-cifar11': did you mean 'madry-cifar10'"),
        ("eps = ", "not valid TOML"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as raised:
        files.load_protocol(str(file))
    assert "mine.toml" in str(raised.value)


def test_names_that_there_are_not(tmp_path):
    result = invoke("protocol", "madry-cifar11")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'madry-cifar10'" in result.stderr
    assert "cannot be read" in invoke("protocol", tmp_path / "gone.toml").stderr
    assert "is a sweep" in invoke("protocol", "sweep-eps", "--toml").stderr


def test_list_prints_one_kind():
    everything = invoke("list").output
    for kind, names in {"protocols": [*PROTOCOLS, *SWEEPS], "models": rlr.MODELS, "guards": GUARDS}.items():
        text = invoke("list", kind).output
        assert all(name in text for name in names)
        assert all(line in everything for line in text.splitlines())
        assert "fashion-mnist-mini" not in text
    assert invoke("list", "protocol").exit_code == 2

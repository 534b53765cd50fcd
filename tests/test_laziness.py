"""Names are imported when they are used: help and lists come at once, and no function hides a module."""

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import robust_lr
from robust_lr.commands.catalog import catalog, collect

HEAVY = ("torch", "numpy", "torchvision", "PIL", "matplotlib", "torchattacks")


def modules_after(code):
    """Modules that are imported once ``code`` has run in a process of its own."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "module"),
    [(["--help"], None), (["--version"], None), (["list"], "protocol"), (["list", "protocols"], "protocol")],
)
def test_help_and_lists_import_only_what_they_need(arguments, module):
    found = modules_after(
        "from robust_lr.cli import main\n"
        f"try:\n    main({arguments!r}, prog_name='robust-lr')\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert not found.intersection(HEAVY)
    commands = {name.rpartition(".")[2] for name in found if name.startswith("robust_lr.commands.")}
    assert commands <= {module, "terminal", "catalog", "completion"}


def test_the_package_imports_nothing_heavy_until_a_name_is_used():
    assert not modules_after("import robust_lr").intersection(HEAVY)
    assert "torch" in modules_after("import robust_lr\nrobust_lr.evaluate")


def test_the_catalog_is_what_the_rooms_define():
    assert catalog() == collect(), "run: python -m robust_lr.commands.catalog"


def test_no_public_function_has_the_name_of_a_module_beside_it():
    for found in pkgutil.walk_packages(robust_lr.__path__, "robust_lr."):
        if found.name.endswith(("__main__", ".timm")) or ".reports.sections." in found.name:  # a list of functions
            continue
        package, _, name = found.name.rpartition(".")
        holder = importlib.import_module(package)
        importlib.import_module(found.name)
        assert isinstance(getattr(holder, name), types.ModuleType), found.name

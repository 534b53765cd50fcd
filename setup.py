"""Put the compiled kernels in the folder ROBUST_LR_WHEEL_LIBRARIES into a wheel, which is then one for their platform.

Everything else is in pyproject.toml. `make wheel` sets the variable; without it a wheel has no compiled code.
"""

import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARIES = os.environ.get("ROBUST_LR_WHEEL_LIBRARIES")


class BuildWithLibraries(build_py):
    def run(self) -> None:
        super().run()
        if LIBRARIES:
            folder = Path(self.build_lib) / "robust_lr" / "ops" / "lib"
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(LIBRARIES).iterdir()):
                self.copy_file(str(path), str(folder / path.name))


class WheelForEveryPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]  # the libraries know nothing of Python


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(LIBRARIES)  # then it goes where libraries for one platform belong


setup(cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": WheelForEveryPython}, distclass=PlatformDistribution)

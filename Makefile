# Everything runs in a virtual environment of its own, which the first target that needs it makes.
PYTHON ?= python3
TORCH ?=# e.g. 2.12: that PyTorch, in an environment of its own
VENV ?= .venv$(if $(TORCH),-torch$(TORCH))
BIN := $(VENV)/bin
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: help table9 results test test-fast zoo xval gpu-check lint format docs wheel wheel-check clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

table9: $(VENV)/installed  ## the main job: train six networks, attack them, print Table 9
	$(BIN)/robust-lr table9

results: $(VENV)/installed  ## repeat the results that take under an hour, and say what differs from the committed ones
	$(BIN)/python benchmarks/repeat.py

test: $(VENV)/installed  ## all tests, on all cores; TORCH=2.12 with that PyTorch
	$(BIN)/pytest $(PARALLEL)

test-fast: $(VENV)/installed  ## the tests that take less than a few seconds each
	$(BIN)/pytest $(PARALLEL) -m "not slow and not gpu"

zoo: $(VENV)/installed  ## broken defenses and honest networks under default probes; writes docs/zoo.md
	$(BIN)/python benchmarks/zoo.py --twins

xval: $(VENV)/installed  ## attacks against torchattacks, cleverhans, foolbox and adv-lib, installed alone; AUTOATTACK=FOLDER: the official code too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps cleverhans foolbox eagerpy gitpython gitdb smmap adv-lib
	$(BIN)/pytest tests/attacks/test_cross_validation.py tests/attacks/test_adversarial_library.py tests/attacks/test_official_autoattack.py -rs

gpu-check: $(VENV)/installed  ## on a machine with a GPU: build, test, sanitize and time the CUDA kernels
	$(BIN)/python benchmarks/gpu_check.py $(if $(AUTHORS),--authors $(AUTHORS))

lint: $(VENV)/installed  ## style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cu')
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/installed  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu')

docs: $(VENV)-docs/installed  ## the documentation site, strictly, in site/
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --quiet --strict

wheel: $(VENV)/installed  ## dist/robust_lr-*.whl with compiled kernels (Linux, x86-64); CUDA="8.0 9.0" adds those for GPUs
	rm -rf build dist/robust_lr-*.whl
ifeq ($(shell uname -sm),Linux x86_64)
	$(BIN)/python -m robust_lr.ops.wheel build/libraries $(if $(CUDA),"$(CUDA)")
	ROBUST_LR_WHEEL_LIBRARIES=build/libraries $(BIN)/python -m build --wheel --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
else
	$(BIN)/python -m build --wheel
endif

wheel-check: wheel  ## the wheel, installed outside the repository, attacks the shipped network
	tests/wheel_check.sh $(BIN)/python dist/robust_lr-*.whl

clean:  ## remove the environment and what was built
	rm -rf $(VENV) $(VENV)-docs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(if $(TORCH),'torch==$(TORCH).*')
	touch $@

# The packages of the first environment are visible from this one; docs/requirements.txt says why there are two.
$(VENV)-docs/installed: $(VENV)/installed docs/requirements.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  echo "import site; site.addsitedir('$$($(BIN)/python -c "$$site")')" \
	  > "$$($(VENV)-docs/bin/python -c "$$site")/project.pth"
	touch $@

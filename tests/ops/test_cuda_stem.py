"""The stem's CUDA kernels against its separate steps: on the CPU by the shim, and on a GPU if there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cuda import TOLERANCE
from test_local_relation import BORDER, COMPOSABILITY, NORMALIZATION
from test_stem_relation import assert_matches_oracle, make, networks, results
from torch import Tensor, nn

from robust_lr.ops import library
from robust_lr.ops import stem_relation as stem
from robust_lr.ops.stem_relation import compose_stem, stem_relation

Operator = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(not library.load(), reason="no compiled kernels")


@pytest.fixture
def on_shim(shim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the shim compute the stem of CPU tensors."""
    for name in ("stem_relation", "stem_relation_backward"):
        monkeypatch.setattr(getattr(torch.ops.robust_lr, name), "default", getattr(shim, name).default)
    monkeypatch.setitem(stem.PRECISIONS, "cpu", stem.PRECISIONS["cuda"])


def run_on_gpu(*tensors: Tensor | None, **options: Any) -> Tensor:
    return stem_relation(*(None if t is None else t.cuda() for t in tensors), **options).cpu()  # type: ignore[arg-type]


@pytest.fixture(params=["shim", "gpu"])
def operator(request: pytest.FixtureRequest) -> Operator:
    if request.param == "shim":
        request.getfixturevalue("on_shim")
        return stem_relation
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return run_on_gpu


@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_matches_oracle(
    operator: Operator, composability: str, normalization: str, border: str, dtype: torch.dtype
) -> None:
    for stride, inputs, d, channels_last in ((1, 3, 1, True), (2, 1, 2, False), (2, 3, 1, False)):
        tensors = make(2, inputs, 20, 11, 21, d=d, size=7, dtype=dtype, channels_last=channels_last)
        assert_matches_oracle(
            tensors, stride, operator, TOLERANCE, composability=composability, normalization=normalization,
            border=border,
        )  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    n=st.integers(1, 3), inputs=st.integers(1, 4), c=st.integers(1, 80), h=st.integers(1, 12), w=st.integers(1, 20),
    m=st.integers(1, 17), d=st.sampled_from((1, 1, 1, 3)), size=st.sampled_from((1, 3, 7)), stride=st.integers(1, 3),
    dtype=st.sampled_from(list(TOLERANCE)), channels_last=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_matches_oracle_at_any_shape(
    operator: Operator, n: int, inputs: int, c: int, h: int, w: int, m: int, d: int, size: int, stride: int,
    dtype: torch.dtype, channels_last: bool, seed: int,
) -> None:  # fmt: skip
    """Some shapes have more rows of weights, or more channels, than a block takes at a time."""
    tensors = make(n, inputs, c, h, w, m, d, size, dtype, channels_last, seed)
    assert_matches_oracle(tensors, stride, operator, TOLERANCE, channels_per_group=m)


def test_many_blocks(operator: Operator) -> None:
    """Sums in more parts than are summed at once, and images of several blocks."""
    assert_matches_oracle(make(3, 3, 9, 75, 70, size=3, dtype=torch.float32), 2, operator, TOLERANCE)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_right_twice(operator: Operator, stride: int) -> None:
    tensors = [t.requires_grad_() for t in make(n=1, c=5, h=4, w=3)]
    assert torch.autograd.gradcheck(lambda *t: operator(*t, stride=stride), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: operator(*t, stride=stride), tensors)


@pytest.mark.parametrize(("stride", "m", "border"), [(1, 8, "mask"), (2, 8, "zero"), (2, 16, "mask")])
def test_results_are_the_same_every_time(operator: Operator, stride: int, m: int, border: str) -> None:
    tensors = make(2, c=80, h=19, w=17, m=m, size=7, dtype=torch.float32)
    first = results(operator, tensors, stride, channels_per_group=m, border=border)
    for a, b in zip(first, results(operator, tensors, stride, channels_per_group=m, border=border), strict=True):
        assert torch.equal(a, b)


def test_results_do_not_depend_on_the_batch(operator: Operator) -> None:
    tensors = make(3, c=20, h=9, w=13, size=7, dtype=torch.float32)
    together = results(operator, tensors, 2)[:2]
    for order in ([1], [2, 0]):
        for a, b in zip(together, results(operator, [tensors[0][order], *tensors[1:]], 2)[:2], strict=True):
            assert torch.equal(a[order], b)


@pytest.mark.parametrize("m", [8, 16])
def test_only_wanted_gradients(operator: Operator, m: int) -> None:
    """Attacks need the image's gradient, training those of the weights; each is the same as if all were computed."""
    tensors = make(m=m, dtype=torch.float32)
    every = results(operator, tensors, 2, channels_per_group=m)[1:]
    dy = torch.randn(12, 4, 5, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
    for wanted in ([0], [1, 2, 3, 4], [4]):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        y = operator(*leaves, stride=2, channels_per_group=m)
        for i, a in zip(wanted, torch.autograd.grad(y, [leaves[i] for i in wanted], dy), strict=True):
            assert torch.equal(a, every[i])


@pytest.mark.parametrize("m", [8, 16])
def test_nan_propagates(operator: Operator, m: int) -> None:
    image, *weights = make(n=2, c=20, h=9, w=10, m=m, dtype=torch.float32)
    image[1, 0, 4, 5] = float("nan")
    found, wanted = (results(f, [image, *weights], 2, channels_per_group=m) for f in (operator, compose_stem))
    assert wanted[0].isnan().any()
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("size", [5, 11])
def test_without_a_prior(operator: Operator, size: int) -> None:
    image, *weights, _ = make(dtype=torch.float32)
    found, wanted = (f(image, *weights, None, kernel_size=size, stride=2) for f in (operator, compose_stem))
    torch.testing.assert_close(found, wanted)


STRIPS = {"project", "forward_strips", "backward_queries", "backward_keys", "sum_parts"}
PRODUCTS = STRIPS - {"project"} | {"project_products"}
GENERAL = {"project", "forward_general", "dq_general", "dk_general", "dx_general", "dgeo_general", "sum_parts"}


@pytest.mark.usefixtures("on_shim")
@pytest.mark.parametrize(
    ("kernels", "dtype", "m", "wanted", "last"),
    [
        (STRIPS, torch.float32, 8, [0], "image_gradient"),
        (PRODUCTS, torch.bfloat16, 8, [0], "image_gradient_products"),
        (PRODUCTS, torch.bfloat16, 8, [1, 2, 3, 4], "weights_gradient_products"),
        (GENERAL, torch.float32, 16, [0], "image_gradient"),
        (GENERAL, torch.float64, 8, [1, 2, 3, 4], "weights_gradient"),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_only_needed_kernels_run(
    kernels: set[str], dtype: torch.dtype, m: int, wanted: list[int], last: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_SHIM_LOG", str(tmp_path / "log"))
    tensors = [t.requires_grad_(i in wanted) for i, t in enumerate(make(m=m, dtype=dtype))]
    stem_relation(*tensors, stride=2, channels_per_group=m).sum().backward()
    launched = set((tmp_path / "log").read_text().split())
    needed = (kernels if 4 in wanted else kernels - {"sum_parts", "dgeo_general"}) | {last}
    every = STRIPS | PRODUCTS | GENERAL | {"image_gradient", "weights_gradient"}
    every |= {"image_gradient_products", "weights_gradient_products"}
    assert {name for symbol in launched for name in every if f"{len(name)}{name}I" in symbol} == needed


@pytest.mark.usefixtures("on_shim")
@pytest.mark.parametrize("fault", ["left", "right", "elements"])
def test_misplaced_fragments_of_products_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the oracle fails if the lanes of a warp have the wrong elements of a matrix."""
    tensors = make(n=1, c=16, h=9, w=12, dtype=torch.bfloat16)
    assert_matches_oracle(tensors, 2, stem_relation, TOLERANCE)
    monkeypatch.setenv("CUDA_SHIM_FAULT", fault)
    with pytest.raises(AssertionError):
        assert_matches_oracle(tensors, 2, stem_relation, TOLERANCE)


def test_network_in_lower_precision(operator: Operator) -> None:
    """Under autocast, result and gradients are about as close to float64 as layer by layer, on average over inputs."""
    device = "cuda" if operator is run_on_gpu else "cpu"
    inputs = 4
    squares = torch.zeros(3, 0, dtype=torch.float64)  # of fused errors, plain errors and values, by tensor
    for seed in range(inputs):
        x = torch.rand(3, 3, 33, 30, generator=torch.Generator().manual_seed(seed)).to(device)
        found = []
        for network, dtype in zip((*networks(), networks()[0]), (torch.bfloat16, torch.bfloat16, None), strict=True):
            network = network.to(device).eval()
            if dtype is None:
                network, image = network.double(), x.double().requires_grad_()
            else:
                image = x.clone().requires_grad_()
            parts = [image, *stem_parameters(network)]
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype is not None):
                y = network.stem(network.normalize(image))  # type: ignore[operator]
            assert y.dtype == (dtype or torch.float64)
            found.append([y.detach(), *torch.autograd.grad(y.double().square().mean(), parts)])
        for fused, plain in zip(*found[:2], strict=True):
            assert fused.dtype == plain.dtype
        norms = [
            (float((fused - wanted).norm()) ** 2, float((plain - wanted).norm()) ** 2, float(wanted.norm()) ** 2)
            for fused, plain, wanted in zip(*found, strict=True)
        ]
        squares = squares.new_tensor(norms).T + (squares if seed else 0)
    fused_error, plain_error, norm = (squares / inputs).sqrt()
    scale = norm[1:].max()
    allowed = 1e-2 * torch.maximum(norm, 0.1 * scale)  # as in test_stem_relation.py
    assert (fused_error <= torch.maximum(allowed, 2 * plain_error)).all(), (fused_error, plain_error, allowed)


def stem_parameters(network: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in network.named_parameters() if name.startswith(("conv1.", "bn1.", "relation."))]

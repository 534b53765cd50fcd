import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from robust_lr.models.build import build_model
from robust_lr.models.cost import paper_size, profile, solve_bottleneck
from robust_lr.models.layers.local_relation import FullRelation2d, LocalRelation2d
from robust_lr.models.layers.non_local import NonLocal2d
from robust_lr.paper import tables
from robust_lr.paper.stages import describe_stages
from robust_lr.utils.errors import InputError


def torch_s_count(model, x):
    """Multiply-adds of convolutions and matrix products, which torch counts as two operations each."""
    counter = FlopCounterMode(display=False)
    # Attention as matrix products: fused on a CPU, PyTorch 2.12 does not count it.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(x)
    return counter.get_total_flops() / 2


def equation_6(channels, size, kernel_size, stride, m):
    return ((1 + stride**2) / m + 1) * channels * (channels + kernel_size**2) * size**2 / stride**2


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet26_dw", "nl26", "resnet26_nl"])
def test_convolutions_and_matrix_products_count_as_torch_counts_them(name):
    model = build_model(name, num_classes=7, width=1 / 8)
    x = torch.rand(2, 3, 40, 56)
    assert profile(model, x).multiply_adds == torch_s_count(model, x)


@pytest.mark.parametrize("name", ["lrnet18", "lrnet26", "lrnet26_nl"])
def test_the_convolutions_of_an_lrnet_count_as_torch_counts_them(name):
    model = build_model(name, num_classes=7, width=1 / 8, prior="none")
    x = torch.rand(2, 3, 40, 56)
    windows = []

    def window(layer, inputs, y):
        groups = layer.query.out_channels
        windows.append((inputs[0].shape[1] + 2 * groups) * 49 * y[:, 0].numel())

    for layer in model.modules():
        if isinstance(layer, LocalRelation2d):
            layer.register_forward_hook(window)
    assert profile(model, x).multiply_adds - sum(windows) == torch_s_count(model, x)


@pytest.mark.parametrize("m", [1, 8, 16])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_a_layer_costs_what_equation_6_says(kernel_size, m):
    layer = LocalRelation2d(64, 64, kernel_size, channels_per_group=m)
    assert profile(layer, torch.rand(1, 64, 12, 12)).multiply_adds == equation_6(64, 12, kernel_size, 1, m)


@pytest.mark.parametrize("m", [1, 8])
def test_with_a_stride_equation_6_takes_the_window_of_the_keys_at_full_resolution(m):
    found = profile(LocalRelation2d(64, 64, 7, 2, channels_per_group=m), torch.rand(1, 64, 12, 12)).multiply_adds
    outputs = 6 * 6
    transforms = 64 * 64 * ((1 + 4) / m + 1) * outputs
    assert found == transforms + (1 + 2 / m) * 64 * 49 * outputs
    assert found == equation_6(64, 12, 7, 2, m) - 3 / m * 64 * 49 * outputs


def test_options_cost_what_they_add():
    x = torch.rand(1, 64, 12, 12)
    one, four = (profile(LocalRelation2d(64, 64, query_dim=d, composability="product"), x) for d in (1, 4))
    groups, added = 8, 3
    assert four.multiply_adds - one.multiply_adds == added * groups * 144 * (49 + 2 * 64)
    short = profile(LocalRelation2d(60, 64, channels_per_group=8), x[:, :60]).multiply_adds
    assert short == 144 * (60 * 8 * 2 + 60 * 64 + (60 + 2 * 8) * 49)  # eight groups, the last one short


def test_the_full_image_is_a_window_of_all_keys():
    x = torch.rand(2, 16, 12, 9)
    found = profile(FullRelation2d(16, 24, 2, key_stride=4), x).multiply_adds
    outputs, keys = 6 * 5, 3 * 3
    assert found == 2 * (outputs * (16 * 2 + 16 * 24) + keys * 16 * 2 + outputs * keys * (16 + 2 * 2))
    layer = NonLocal2d(16, 24, 2, key_stride=4)
    assert profile(layer, x).multiply_adds == torch_s_count(layer, x)


def test_activations_are_what_layers_return():
    x = torch.rand(2, 3, 8, 8)
    inplace = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Identity())
    assert profile(inplace, x).activation_bytes == 4 * 2 * (2 * 4 * 64)
    copying = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    assert profile(copying.double(), x.double()).activation_bytes == 8 * 2 * (2 * 4 * 64)
    layer = LocalRelation2d(16, 8, stride=2)
    q, k, y, out = 2 * 16, 2 * 64, 16 * 16, 8 * 16
    assert profile(layer, torch.rand(1, 16, 8, 8)).activation_bytes == 4 * (q + k + y + out)
    block = build_model("resnet18", width=1 / 16).layer1[0]
    assert profile(block, torch.rand(1, 4, 8, 8)).activation_bytes == 4 * 64 * 4 * 5  # two convolutions, norms, a sum


def test_a_model_is_left_as_it_was():
    model = build_model("lrnet26", width=1 / 16).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    profile(model, torch.rand(2, 3, 32, 32))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_shapes_are_enough():
    with torch.device("meta"):
        model, x = build_model("lrnet26", width=1 / 8), torch.empty(2, 3, 32, 32)
    assert profile(model, x) == profile(build_model("lrnet26", width=1 / 8), torch.rand(2, 3, 32, 32))


SIZES = {9: "table9/imagenet"}  # the paper's networks, which `robust-lr table 9 --count-only` counts
ROWS = [(number, row) for number in range(2, 10) for row in tables.read(SIZES.get(number, f"table{number}")).rows]


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[f"{number}: {row.label}" for number, row in ROWS])
def test_parameters_are_the_paper_s(number, row):
    if "params" not in row.size:
        return
    ratio = row.profile().parameters / 1e6 / row.size["params"]
    if row.label == "NL-26":  # see configs/table7.toml
        assert ratio == pytest.approx(0.868, abs=0.001)
    else:
        assert ratio == pytest.approx(1, abs=0.006)


@pytest.mark.parametrize(
    ("name", "like"), [("lrnet26", "resnet26"), ("lrnet50", "resnet50"), ("lrnet101", "resnet101")]
)
def test_an_lrnet_costs_what_its_resnet_does(name, like):
    assert paper_size(name).multiply_adds == pytest.approx(paper_size(like).multiply_adds, rel=0.025)


def test_the_counts_that_the_layout_is_known_to_give():
    assert paper_size("resnet50").multiply_adds == pytest.approx(4.09e9, rel=0.001)
    assert paper_size("lrnet50").multiply_adds == pytest.approx(4.03e9, rel=0.01)
    assert paper_size("lrnet26").multiply_adds == pytest.approx(2.38e9, rel=0.01)
    assert paper_size("lrnet18").multiply_adds == pytest.approx(2.5e9, rel=0.01)


def nearest(name, like, width, **options):
    """Return True if one channel more or less brings the cost no closer."""
    off = [abs(paper_size(name, **options, bottleneck=b).multiply_adds - like) for b in (width - 1, width, width + 1)]
    return min(off) == off[1]


@pytest.mark.parametrize("row", [row for number, row in ROWS if number == 3], ids=lambda row: row.label)
def test_rows_of_table_3_have_the_width_at_which_they_cost_as_much_as_resnet26(row):
    options = dict(row.options)
    name, width = options.pop("name"), options.pop("bottleneck")
    like = paper_size("resnet26").multiply_adds
    if name == "lrnet26" and options["kernel_size"] == 7:
        assert width == 100  # the paper's
        assert paper_size(name, **options).multiply_adds == pytest.approx(like, rel=0.025)
    else:
        assert nearest(name, like, width, **options)


@pytest.mark.parametrize(
    ("name", "like", "width"),
    [("resnet26_dw", "resnet26", 126), ("nl26", "resnet26", 94), ("lrnet101", "resnet101", 103)],
)
def test_widths_of_networks_are_those_at_which_they_cost_as_much_as_their_rivals(name, like, width):
    assert paper_size(name) == paper_size(name, bottleneck=width)
    assert nearest(name, paper_size(like).multiply_adds, width)


def test_the_solver_takes_the_nearest_width():
    cost = {b: paper_size("resnet26", kernel_size=5, bottleneck=b).multiply_adds for b in (44, 45)}
    for like, width in ((0.6 * cost[44] + 0.4 * cost[45], 44), (0.4 * cost[44] + 0.6 * cost[45], 45), (cost[45], 45)):
        assert solve_bottleneck("resnet26", int(like), kernel_size=5) == width
    assert solve_bottleneck("resnet26", paper_size("resnet26").multiply_adds) == 64


def test_what_no_width_costs_is_said():
    with pytest.raises(InputError, match=r"no bottleneck of resnet26 .* the closest, 1"):
        solve_bottleneck("resnet26", 1000)


def test_stages_add_up_to_the_network():
    for name in ("resnet50", "lrnet50", "nl26", "lrnet26_nl"):
        stages = describe_stages(name)
        whole = paper_size(name)
        assert sum(stage.parameters for stage in stages) == whole.parameters
        assert sum(stage.multiply_adds for stage in stages) == whole.multiply_adds
        assert [stage.side for stage in stages] == [56, 56, 28, 14, 7, 1]
    assert [stage.layers for stage in describe_stages("lrnet50")][:2] == [
        "1x1 64 | 7x7 LR 64 | max-pool",
        "1x1 100 | 7x7 LR 100 | 1x1 256 x 3",
    ]
    assert describe_stages("lrnet26_nl")[1].layers == "1x1 100 | 7x7 LR 100 | 1x1 256 x 2, each then NL 256"
    assert describe_stages("lrnet26", kernel_size="full")[1].layers == "1x1 100 | full LR 100 | 1x1 256 x 2"

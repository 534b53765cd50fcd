import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import robust_lr as rlr
from robust_lr.models.build import MODELS, build_model
from robust_lr.models.folding import fold, folded_state
from robust_lr.models.layers.basic import Pointwise2d
from robust_lr.models.layers.geometric_prior import FixedPrior, GeometricPrior, TablePrior
from robust_lr.models.layers.local_relation import LocalRelation2d
from robust_lr.models.layers.non_local import NonLocalBlock
from robust_lr.models.resnet import Block
from robust_lr.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("seeded")


def with_random_statistics(model):
    """Batch norms as after some training: at the start they are nearly the identity, or zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for module in model.modules():
        if isinstance(module, Block | NonLocalBlock):
            # or else the gradients of 33 blocks grow a thousandfold, and their rounding with them
            nn.init.uniform_(module.last_norm.weight, 0.1, 0.3)
    return model


def tiny(name, **options):
    return with_random_statistics(build_model(name, num_classes=5, width=1 / 16, **options)).eval()


def stages(model):
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.7),
        ("resnet26", 16.0),
        ("resnet50", 25.6),
        ("resnet101", 44.5),
        ("lrnet26", 14.6),
        ("lrnet50", 23.4),
    ],
)
def test_parameter_counts_are_those_of_the_layout(name, millions):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvision_s(name):
    ours = with_random_statistics(build_model(name, num_classes=7)).eval()
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    state = {key: value for key, value in ours.state_dict().items() if not key.startswith("normalize.")}
    assert state.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(state)
    x = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        assert relative(ours(x), theirs(ours.normalize(x))) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "lrnet26"])
@pytest.mark.parametrize(
    ("stem", "size", "first", "last"),
    [("imagenet", 64, 16, 2), ("imagenet", 28, 7, 1), ("stride2", 28, 14, 2), ("small", 32, 32, 4)],
)
def test_stems_and_stages_shrink_the_image_as_they_should(name, stem, size, first, last):
    model = tiny(name, stem=stem)
    shapes = {}
    for layer in ("layer1", "layer2", "layer4"):
        model.get_submodule(layer).register_forward_hook(
            lambda m, i, out, layer=layer: shapes.update({layer: out.shape})
        )
    assert model(torch.rand(2, 3, size, size)).shape == (2, 5)
    assert shapes["layer1"][2:] == (first, first)
    assert shapes["layer2"][2:] == (-(-first // 2), -(-first // 2))
    assert shapes["layer4"][2:] == (last, last)


def test_the_stride_sits_on_the_spatial_layer_of_the_first_block():
    for name in ("resnet26", "lrnet26"):
        model = tiny(name)
        for (first, second), stride in zip(stages(model), (1, 2, 2, 2), strict=True):
            assert first.conv1.stride == (1, 1)
            assert first.conv2.stride in (stride, (stride, stride))
            assert second.conv2.stride in (1, (1, 1))
            assert second.downsample is None


def test_lrnet_has_the_paper_s_channels_and_groups():
    with torch.device("meta"):
        model = build_model("lrnet50")
    assert [len(stage) for stage in stages(model)] == [3, 4, 6, 3]
    relations = [m for m in model.modules() if isinstance(m, LocalRelation2d)]
    assert [r.transform.in_channels for r in relations] == [64] + [100] * 3 + [200] * 4 + [400] * 6 + [800] * 3
    assert [r.query.out_channels for r in relations[:2]] == [8, 13]
    assert [r.prior.kernel_size for r in relations] == [7] * 17
    assert model.conv1.kernel_size == (1, 1)
    assert model.relation.stride == 2
    assert model.fc.in_features == 2048


def test_every_name_builds_and_lists():
    for name in MODELS:
        assert tiny(name)(torch.rand(1, 3, 16, 16)).shape == (1, 5)
    assert rlr.MODELS is MODELS


def test_width_scales_every_channel_count_and_never_to_zero():
    model = build_model("lrnet26", width=0.25)
    assert model.conv1.out_channels == 16
    assert [model.get_submodule(f"layer{i}")[0].conv2.transform.out_channels for i in (1, 2, 3, 4)] == [
        25,
        50,
        100,
        200,
    ]
    assert model.fc.in_features == 512
    assert build_model("lrnet26", width=1e-4).conv1.out_channels == 1


def test_layer_options_reach_every_relation_layer():
    model = build_model("lrnet26", width=1 / 16, kernel_size=3, channels_per_group=2, composability="product")
    relations = [m for m in model.modules() if isinstance(m, LocalRelation2d)]
    assert len(relations) == 9
    assert {r.prior.kernel_size for r in relations} == {3}
    assert {(r.channels_per_group, r.composability, r.normalization) for r in relations} == {(2, "product", "softmax")}


def test_statistics_belong_to_the_model():
    x = torch.rand(2, 2, 16, 16)
    model = tiny("resnet18", in_channels=2, mean=(0.1, 0.2), std=(0.5, 2.0))
    plain = tiny("resnet18", in_channels=2, mean=(0, 0), std=(1, 1))
    state = model.state_dict()
    state.update({k: v for k, v in plain.state_dict().items() if k.startswith("normalize.")})
    plain.load_state_dict(state)
    by_hand = (x - torch.tensor([0.1, 0.2]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(model(x), plain(by_hand))


def test_default_statistics_are_imagenet_s_for_color_only():
    assert build_model("resnet18", width=0.1).normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    gray = build_model("resnet18", width=0.1, in_channels=1).normalize
    assert (gray.mean.item(), gray.std.item()) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "lrnet27"}, "unknown model 'lrnet27': did you mean 'lrnet26'"),
        ({"name": 26}, "unknown model 26: did you mean 'nl26'. choose one of resnet18"),
        ({"stem": "tiny"}, "stem = 'tiny': choose one of imagenet, stride2, small"),
        ({"kernelsize": 3}, "unknown option of lrnet26 'kernelsize': did you mean 'kernel_size'"),
        ({"name": "resnet26", "border": "mask"}, "unknown option of resnet26 'border'"),
        ({"name": "nl26", "kernel_size": 3}, "unknown option of nl26 'kernel_size'"),
        ({"name": "resnet26", "kernel_size": 4}, "kernel_size = 4: an odd number"),
        ({"name": "resnet26", "kernel_size": "full"}, "kernel_size = 'full': a whole number is needed"),
        ({"bottleneck": 0}, "bottleneck = 0: must be at least 1"),
        ({"prior": "learnt"}, "unknown prior 'learnt': choose one of network, table, none"),
        ({"kernel_size": "whole"}, "kernel_size = 'whole': a whole number is needed, or 'full'"),
        ({"channels_per_group": "most"}, "channels_per_group = 'most': a whole number is needed, or 'all'"),
        ({"conv_stem": 1}, "conv_stem = 1: true or false is needed"),
        ({"depths": (1, 1, 1, 1)}, "unknown option of lrnet26 'depths'"),
        ({"composability": "sum"}, "composability 'sum': choose one of squared_difference"),
        ({"border": "wrap"}, "border 'wrap': choose one of mask, zero"),
        ({"kernel_size": 4}, "kernel_size = 4: an odd number"),
        ({"kernel_size": 3.5}, "kernel_size = 3.5: a whole number is needed"),
        ({"channels_per_group": 0}, "channels_per_group = 0: must be at least 1"),
        ({"num_classes": 0}, "num_classes = 0.*at least 1"),
        ({"num_classes": "ten"}, "num_classes = 'ten': a whole number is needed"),
        ({"in_channels": 0}, "in_channels = 0: must be between 1 and 1024"),
        ({"in_channels": 10**18}, "in_channels = 1000000000000000000: must be between 1 and 1024"),
        ({"width": 99.5}, r"width = 99\.5.* weights do not fit this machine's memory"),
        ({"num_classes": 10**12}, r"num_classes = 1000000000000: .* weights do not fit"),
        ({"in_channels": "x"}, "in_channels = 'x': a whole number is needed"),
        ({"width": 0}, "width = 0.*above 0 and below 100"),
        ({"width": -1}, "width = -1.*above 0 and below 100"),
        ({"width": float("nan")}, "width = nan.*above 0 and below 100"),
        ({"width": "big"}, "width = 'big': a number is needed"),
        ({"width": True}, "width = True: a number is needed"),
        ({"mean": (0.5,)}, r"mean = \(0.5,\): one value for each of 3 channels"),
        ({"mean": 0.5}, "mean = 0.5: a list is needed"),
        ({"mean": "abc"}, "mean = 'abc': a list is needed"),
        ({"std": (1.0, 0.0, 1.0)}, "std > 0"),
        ({"std": (1.0,)}, "need equal lengths"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(options, words):
    with pytest.raises(InputError, match=words):
        build_model(**{"name": "lrnet26", "width": 1 / 16} | options)


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert build_model("resnet18", num_classes=numpy.int64(3), width=numpy.float32(0.0625)).fc.out_features == 3


def test_networks_start_with_blocks_that_are_their_shortcuts():
    for name in ("resnet18", "lrnet26"):
        block = build_model(name, width=1 / 16).layer2[1].eval()
        x = torch.rand(1, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), x)


def test_relation_layers_of_a_network_start_soft():
    model = build_model("lrnet26")
    query = model.layer3[0].conv2.query
    assert query.weight.std().item() == pytest.approx(query.in_channels**-0.5, rel=0.05)


@pytest.mark.parametrize("kernel_size", [7, "full"])
def test_queries_and_keys_start_at_the_scale_that_is_asked_for(kernel_size):
    layers = []
    for scale in (1.0, 0.1):
        torch.manual_seed(3)
        network = build_model("lrnet26", width=0.125, kernel_size=kernel_size, appearance_scale=scale)
        layers.append(network.layer2[0].conv2)
    for transform in ("query", "key"):
        whole, tenth = (layer.get_submodule(transform).weight for layer in layers)
        torch.testing.assert_close(tenth, 0.1 * whole)
    assert torch.equal(layers[0].transform.weight, layers[1].transform.weight)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MODELS),
        ("lrnet26", {"prior": "table", "kernel_size": 3}),
        ("lrnet26", {"prior": "none", "kernel_size": 5}),
        ("lrnet26", {"kernel_size": "full"}),
        ("lrnet26", {"kernel_size": "full", "prior": "table"}),
        ("lrnet26", {"query_dim": 4, "composability": "product", "channels_per_group": "all"}),
        ("lrnet18", {"conv_stem": True, "stem": "small"}),
        ("resnet26", {"kernel_size": 5}),
    ],
    ids=str,
)
def test_folded_copy_computes_the_same_logits_and_image_gradients(name, options):
    model = tiny(name, in_channels=1, **options)
    for module in model.modules():
        if isinstance(module, TablePrior):
            nn.init.normal_(module.values)
    model.double()
    folded = fold(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.rand(2, 1, 20, 20, dtype=torch.float64)
    gradients = []
    for network in (model, folded):
        image = x.clone().requires_grad_()
        logits = network(image)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([1, 3])), image)
        gradients.append((logits.detach(), gradient))
    (logits, gradient), (folded_logits, folded_gradient) = gradients
    assert logits.std() > 1e-3
    assert relative(folded_logits, logits) < 1e-9
    assert relative(folded_gradient, gradient) < 1e-6
    image = x.float().requires_grad_()
    single = folded.float()(image)
    loss = nn.functional.cross_entropy(single, torch.tensor([1, 3]))
    assert relative(single.detach().double(), logits) < 1e-5
    assert relative(torch.autograd.grad(loss, image)[0].double(), gradient) < 1e-4


def test_folding_leaves_the_model_alone_and_its_copy_frozen_in_eval_mode():
    model = tiny("lrnet26").train()
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    folded = fold(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    own = {t.data_ptr() for t in model.state_dict().values()}
    assert not any(t.data_ptr() in own for t in folded.state_dict().values())


def test_folded_networks_have_their_prior_s_values():
    folded = fold(tiny("lrnet26"))
    priors = [m.prior for m in folded.modules() if isinstance(m, LocalRelation2d)]
    assert len(priors) == 9
    assert all(isinstance(prior, FixedPrior) for prior in priors)


def test_priors_over_the_full_image_stay_networks_because_their_values_depend_on_its_size():
    folded = fold(tiny("lrnet26", kernel_size="full"))
    priors = [m.prior for m in folded.modules() if isinstance(m, LocalRelation2d)]
    assert [type(prior) for prior in priors] == [FixedPrior] + 8 * [GeometricPrior]  # the stem keeps its window


def test_an_lrnet_can_have_the_stem_of_resnet():
    for stem, side in (("imagenet", 7), ("small", 3)):
        model = build_model("lrnet26", width=1 / 16, conv_stem=True, stem=stem)
        assert [name for name in model.stem_names if name != "maxpool"] == ["conv1", "bn1", "relu"]
        assert model.conv1.kernel_size == (side, side)
        assert len([m for m in model.modules() if isinstance(m, LocalRelation2d)]) == 8


def test_non_local_blocks_follow_every_residual_block_with_coarser_keys_where_there_are_more_pixels():
    for name in ("resnet26_nl", "lrnet26_nl"):
        model = tiny(name)
        for stage, key_stride in zip(stages(model), (4, 2, 2, 1), strict=True):
            assert [type(layer) for layer in stage[1::2]] == [NonLocalBlock, NonLocalBlock]
            assert {layer.relation.key_stride for layer in stage[1::2]} == {key_stride}


@pytest.mark.parametrize(("name", "options"), [("lrnet26", {"kernel_size": "full"}), ("nl26", {})])
def test_keys_have_one_grid_in_all_layers_of_a_stage_that_sees_the_full_image(name, options):
    for stage, key_strides in zip(stages(tiny(name, **options)), [(4, 4), (4, 2), (4, 2), (2, 1)], strict=True):
        assert tuple(block.conv2.key_stride for block in stage) == key_strides
        assert [block.conv2.transform.stride for block in stage] == [(1, 1), (1, 1)]


class WeightGradients(TorchDispatchMode):
    """Kernel sizes and strides of the convolutions whose weight gradients are taken."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.convolution_backward.default and args[10][1]:
            self.seen.append((tuple(args[2].shape[2:]), tuple(args[4])))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_training_takes_no_weight_gradient_that_corrupts_memory(name):
    # of a 1x1 convolution with a stride, see Pointwise2d
    with WeightGradients() as gradients:
        tiny(name).train()(torch.rand(2, 3, 32, 32)).sum().backward()
    assert ((1, 1), (1, 1)) in gradients.seen
    assert not any(kernel == (1, 1) and stride != (1, 1) for kernel, stride in gradients.seen)


def test_taking_pixels_first_is_a_strided_convolution():
    layer = Pointwise2d(6, 5, 2).double()
    plain = nn.Conv2d(6, 5, 1, stride=2, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(2, 6, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


def test_pixels_are_taken_first_on_a_cpu_only():
    layer, strides = Pointwise2d(6, 5, 2), []

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator is torch.ops.aten.convolution.default:
                strides.append(tuple(args[3]))
            return operator(*args, **(kwargs or {}))

    with Convolutions():
        layer(torch.rand(1, 6, 4, 4))
        layer.to("meta")(torch.rand(1, 6, 4, 4, device="meta"))
    assert strides == [(1, 1), (2, 2)]


def test_depthwise_layers_convolve_each_channel_by_itself():
    model = tiny("resnet26_dw", kernel_size=5)
    for stage in stages(model):
        for block in stage:
            assert block.conv2.groups == block.conv2.in_channels == block.conv2.out_channels
            assert block.conv2.kernel_size == (5, 5)


@pytest.mark.parametrize("name", ["resnet18", "lrnet26"])
def test_folded_state_follows_training(name):
    model = tiny(name)
    folded = fold(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.rand(4, 3, 16, 16)
    model.train()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert relative(folded(x), model(x)) > 1e-3
        folded.load_state_dict(folded_state(model))
        assert relative(folded(x), model(x)) < 1e-5


def test_folding_twice_changes_nothing():
    once = fold(tiny("lrnet26"))
    twice = fold(once)
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())


@pytest.mark.parametrize("name", ["resnet26", "lrnet26"])
def test_folded_networks_compile_in_one_graph(name):
    folded = fold(tiny(name).double())
    x = torch.rand(2, 3, 20, 20, dtype=torch.float64, requires_grad=True)
    found = []
    for network in (folded, torch.compile(folded, backend="aot_eager", fullgraph=True)):
        logits = network(x)
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), x)))
    for plain, compiled in zip(*found, strict=True):
        assert relative(compiled, plain) < 1e-9

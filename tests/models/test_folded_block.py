"""Folded blocks as one node of the graph: the same bits as layer by layer, for fewer calls."""

import pytest
import torch
from torch import Tensor, nn

from robust_lr import build_model
from robust_lr.models.folded_block import FoldedBlock, FoldedRelation2d
from robust_lr.models.folding import fold, in_bfloat16
from robust_lr.models.layers.fused_conv import FusedConv2d, has_bfloat16
from robust_lr.ops import library

pytestmark = pytest.mark.skipif(not library.load(), reason="no compiled kernels")


def folded(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return fold(build_model(name, num_classes=5, in_channels=1, width=0.25, stem="small")).to(dtype)


def logits_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.sin().sum(), x)[0]


@pytest.mark.parametrize("name", ["lrnet26", "resnet26", "resnet18"])
def test_one_node_gives_the_bits_of_its_layers(name, monkeypatch):
    model, x = folded(name), torch.rand(9, 1, 12, 12)
    assert all(block.is_one_node for block in model.modules() if isinstance(block, FoldedBlock))
    whole = logits_and_gradient(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), whole[0])
    monkeypatch.setattr(FoldedBlock, "forward", FoldedBlock.layer_by_layer)
    assert all(map(torch.equal, whole, logits_and_gradient(model, x)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 70])
@pytest.mark.parametrize("name", ["lrnet26", "resnet26"])
def test_parts_and_threads_change_no_bit(name, images, threads, monkeypatch):
    """At this size a block takes a batch of 70 images in several parts, which threads share."""
    model, x = folded(name), torch.rand(images, 1, 24, 24)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = logits_and_gradient(model, x)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(FoldedBlock, "forward", FoldedBlock.layer_by_layer)
    assert all(map(torch.equal, whole, logits_and_gradient(model, x)))


@pytest.mark.parametrize("name", ["lrnet26", "resnet26"])
def test_other_types_have_the_bits_of_their_layers(name, monkeypatch):
    model, x = folded(name), torch.rand(20, 1, 12, 12)
    pairs = [(folded(name, torch.float64), x.double())]
    if has_bfloat16():
        lowered = in_bfloat16(model)
        assert lowered is not None
        pairs.append((lowered, x))
    wholes = [logits_and_gradient(model, x) for model, x in pairs]
    monkeypatch.setattr(FoldedBlock, "forward", FoldedBlock.layer_by_layer)
    for whole, (model, x) in zip(wholes, pairs, strict=True):
        assert all(map(torch.equal, whole, logits_and_gradient(model, x)))


def test_values_that_are_not_finite_do_as_in_the_layers(monkeypatch):
    model, x = folded("lrnet26"), torch.rand(3, 1, 12, 12)
    x[1, 0, 5, 5] = torch.nan
    whole = logits_and_gradient(model, x)
    assert whole[0][1].isnan().all()
    assert whole[0][[0, 2]].isfinite().all()
    monkeypatch.setattr(FoldedBlock, "forward", FoldedBlock.layer_by_layer)
    for one, other in zip(whole, logits_and_gradient(model, x), strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_new_weights_are_used_at_once():
    model, x = folded("lrnet26"), torch.rand(3, 1, 12, 12)
    before = model(x)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    changed = model(x)
    assert not torch.equal(before, changed)
    torch.manual_seed(0)
    fresh = fold(build_model("lrnet26", num_classes=5, in_channels=1, width=0.25, stem="small"))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), changed)


def test_weights_are_looked_up_again_only_where_one_changed(monkeypatch):
    model, x = folded("lrnet26"), torch.rand(3, 1, 12, 12)
    original, looked_up = FusedConv2d.parameters_of_kernel, []
    monkeypatch.setattr(FusedConv2d, "parameters_of_kernel", lambda conv: looked_up.append(conv) or original(conv))

    def lookups() -> set[FusedConv2d]:
        looked_up.clear()
        model(x)
        return set(looked_up)

    everything = lookups()
    assert everything == {m for block in model.modules() if isinstance(block, FoldedBlock) for m in convolutions(block)}
    assert not lookups()
    block = model.get_submodule("layer2.1")
    block.conv1.weight.mul_(2)
    assert lookups() == convolutions(block)
    block.conv3.bias = nn.Parameter(block.conv3.bias + 1, requires_grad=False)
    assert lookups() == convolutions(block)
    assert not lookups()


def convolutions(module: nn.Module) -> set[FusedConv2d]:
    return {part for part in module.modules() if isinstance(part, FusedConv2d)}


@pytest.mark.parametrize("name", ["lrnet26", "resnet26"])
def test_operators_refuse_what_is_not_a_block(name):
    block = next(module for module in folded(name).modules() if isinstance(module, FoldedBlock))
    x = torch.rand(2, block.entry.in_channels, 6, 6).contiguous(memory_format=torch.channels_last)
    run, gradient = torch.ops.robust_lr.folded_block, torch.ops.robust_lr.folded_block_gradient
    tensors, numbers = block.tensors(), block.numbers
    out, kept = run(x, tensors, numbers)
    assert gradient(out, x, out, kept, tensors, numbers).shape == x.shape
    for words, call in (
        ("numbers are missing", lambda: run(x, tensors, numbers[:-1])),
        ("parameters are missing", lambda: run(x, tensors[:-1], numbers)),
        ("numbers are missing", lambda: run(x, [*tensors, tensors[-1]], numbers)),
        ("packed weights", lambda: run(x, [*tensors[3:], *tensors[:3]], numbers)),
        ("must have the dtype of x", lambda: run(x.double(), tensors, numbers)),
        ("channels-last", lambda: run(torch.rand(2, x.shape[1], 6, 6), tensors, numbers)),
        ("of another block", lambda: gradient(out, x, out, kept[1:], tensors, numbers)),
        ("of another block", lambda: gradient(out, x, out, kept.float(), tensors, numbers)),
        ("like the result", lambda: gradient(out, x, out[:1], kept, tensors, numbers)),
        ("like the result", lambda: gradient(out[:1], x, out, kept, tensors, numbers)),
        ("like the result", lambda: gradient(out.double(), x, out, kept, tensors, numbers)),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()


@pytest.mark.parametrize("stride", [1, 2])
def test_operators_refuse_a_relation_that_does_not_fit(stride):
    blocks = [module for module in folded("lrnet26").modules() if isinstance(module, FoldedBlock)]
    block, relation = next(
        (block, layer)
        for block in blocks
        for layer in block.kernel_layers
        if isinstance(layer, FoldedRelation2d) and layer.stride == stride
    )
    x = torch.rand(2, block.entry.in_channels, 6, 6).contiguous(memory_format=torch.channels_last)
    tensors, numbers, own = block.tensors(), block.numbers, relation.numbers_of_kernel()
    run = torch.ops.robust_lr.folded_block
    run(x, tensors, numbers)
    first = next(i for i in range(len(numbers)) if numbers[i : i + len(own)] == own)
    other = [*numbers[: first + 2], 3 - stride, *numbers[first + 3 :]]  # whether joined, kernel_size, stride
    with pytest.raises(RuntimeError, match="do not fit the relation"):
        run(x, tensors, other)
    geo = next(i for i, tensor in enumerate(tensors) if tensor.dim() == 3)
    with pytest.raises(RuntimeError, match="geo must be float32"):
        run(x, [*tensors[:geo], tensors[geo].double(), *tensors[geo + 1 :]], numbers)


def test_no_images_give_no_results():
    block = next(module for module in folded("lrnet26").modules() if isinstance(module, FoldedBlock))
    x = torch.rand(0, block.entry.in_channels, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = block(x)
    assert len(out) == 0
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("name", ["lrnet26", "resnet26"])
def test_gradients_of_gradients_are_those_of_the_layers(name, monkeypatch):
    model, x = folded(name, torch.float64), torch.rand(2, 1, 8, 8, dtype=torch.float64)

    def second() -> Tensor:
        point = x.clone().requires_grad_()
        gradient = torch.autograd.grad(model(point).sin().sum(), point, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), point)[0]

    whole = second()
    assert whole.abs().sum() > 0
    monkeypatch.setattr(FoldedBlock, "forward", FoldedBlock.layer_by_layer)
    assert torch.allclose(whole, second(), rtol=1e-9, atol=1e-15)


def test_layers_without_kernels_stay_nodes_of_their_own():
    torch.manual_seed(0)
    model = fold(build_model("lrnet26", num_classes=5, in_channels=1, width=0.25, stem="small", kernel_size="full"))
    blocks = [block for block in model.modules() if isinstance(block, FoldedBlock)]
    assert not any(block.is_one_node for block in blocks)
    assert model(torch.rand(2, 1, 8, 8)).isfinite().all()

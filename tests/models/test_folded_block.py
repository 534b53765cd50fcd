"""Folded blocks as one node of the graph: the same bits as layer by layer, for fewer calls."""

import pytest
import torch
from torch import Tensor, nn

from robust_lr import build_model
from robust_lr.models.folded_block import FoldedBlock
from robust_lr.models.folding import fold
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

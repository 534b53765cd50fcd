"""Untargeted FAB: the nearest of all boundaries, and minimal perturbations of linear models."""

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.attacks.fast_adaptive_boundary import find_nearest_boundary
from robust_lr.evaluation.guards import GUARDS
from robust_lr.models.folding import make_attackable
from robust_lr.protocols import FAB

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def by_hand(model, x, labels, norm):
    """Values and gradients by the whole Jacobian."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2)
    logits = model(x).detach()
    out = []
    for row, label, gradients in zip(logits, labels, jacobian, strict=True):
        values, slopes = row - row[label], gradients - gradients[label]
        apart = values.abs() / torch.linalg.vector_norm(slopes, ord=DUAL[norm], dim=1)
        apart[label] = torch.inf
        best = apart.argmin()
        out.append((values[best], slopes[best].view_as(x[0])))
    return tuple(map(torch.stack, zip(*out, strict=True)))


@pytest.mark.parametrize("norm", DUAL)
def test_the_nearest_boundary_is_that_of_the_whole_jacobian(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 7))
    x, labels = torch.rand(12, 3, 4, 4), torch.arange(12) % 7
    logits, values, gradient = find_nearest_boundary(model, x, labels, norm)
    expected, slopes = by_hand(model, x, labels, norm)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradient, slopes)


def test_one_graph_serves_all_classes_in_folded_networks_too():
    """Their kernels may write into buffers that a second backward pass needs."""
    model = rlr.build_model("lrnet26", width=1 / 16, stem="small", in_channels=1, num_classes=10)
    folded = make_attackable(model.eval().requires_grad_(False))
    x, _, _ = rlr.data.load("fashion-mnist-mini", "test").batch(torch.arange(16))
    labels = torch.arange(16) % 10
    _, values, gradient = find_nearest_boundary(folded, x, labels, "l2")
    nearest = None
    for shift in range(1, 10):
        leaf = x.clone().requires_grad_()
        logits = folded(leaf)
        value = logits.gather(1, ((labels + shift) % 10)[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
        slope = torch.autograd.grad(value.sum(), leaf)[0]
        apart = value.detach().abs() / slope.flatten(1).norm(dim=1)
        nearest = apart if nearest is None else torch.minimum(apart, nearest)
    torch.testing.assert_close(values.abs() / gradient.flatten(1).norm(dim=1), nearest)


@pytest.mark.parametrize("norm", DUAL)
def test_distances_of_a_linear_model_are_those_of_its_boundaries(norm):
    """Far from the pixels' range, the smallest perturbation is the distance to the nearest of the hyperplanes."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    x = 0.5 + 0.05 * torch.rand(30, 3, 4, 4)
    labels = net(x).argmax(1)
    _, values, gradient = find_nearest_boundary(net, x, labels, norm)
    exact = values.abs() / torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
    keep = exact < (0.3 if norm == "l1" else 1)  # one pixel takes an L1 step alone
    data = rlr.data.from_arrays(x.numpy(), labels.numpy())
    for factor, broken in ((1.02, True), (0.98, False)):
        for i in keep.nonzero()[:4, 0].tolist():
            attack = FAB(eps=factor * float(exact[i]), norm=norm, targets=0, steps=50)
            (row,) = rlr.evaluate(net, data.subset(torch.tensor([i])), attack, allow=tuple(GUARDS), check="off").rows
            assert row.success is broken
            if not broken:
                assert (row.forwards, row.backwards) == (1 + 2 * 50 + 1, 4 * 50)

"""Helpers shared by test files."""

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robust_lr.models.checkpoint import WEIGHTS, read_tensors
from robust_lr.training.run import train_run
from robust_lr.training.run_folder import read_metrics
from robust_lr.training.train_state import list_states


def noise(file, side, classes, **splits):
    """An npz of gray noise: so many images in each split, or of ``both=N`` one that is both."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, n in splits.items():
        prefix = "" if split == "both" else f"{split}_"
        arrays[f"{prefix}images"] = generator.integers(0, 256, (n, side, side), np.uint8)
        arrays[f"{prefix}labels"] = np.arange(n) % classes
    np.savez(file, **arrays)
    return file


def small_run(data, *more):
    """Overrides of a config: three epochs of six steps on 48 images."""
    values = ["model.name=resnet18", "model.width=0.0625", "model.stem=small", f"data.name=npz:{data}", "seed=5"]
    values += ["data.augment=flip-crop", "attack.steps=2", "attack.step_size=8/255", "train.threads=1"]
    values += ["train.epochs=3", "train.batch_size=8", "train.lr=0.05", "train.warmup_epochs=1"]
    return [*values, "train.milestones=[2]", "train.device=cpu", *more]


def until(config, folder, step):
    """A run that dies after ``step``, without a word."""
    run = train_run(config, folder)
    while next(run).step < step:
        pass
    run.close()


def untimed(folder):
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "waited")} for line in read_metrics(folder)
    ]


def assert_finished_like(folder, straight):
    """Weights and state to the bit, and one line for each step."""
    for file in (lambda path: path / WEIGHTS, lambda path: list_states(path)[0]):
        (ours, about_ours), (theirs, about_theirs) = (read_tensors(file(path)) for path in (folder, straight))
        assert about_ours == about_theirs
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert untimed(folder) == untimed(straight)


class Watched(nn.Module):
    """A model that keeps the images that it is shown with a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.queries = model, []

    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            self.queries.append(x.detach().clone())
        return self.model(x)


class Largest(TorchDispatchMode):
    """The most values that any tensor holds."""

    values = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        found = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.values = max(self.values, *found, 0)
        return result

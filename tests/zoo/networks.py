"""Small networks of many kinds, trained in seconds on the embedded images and kept in a folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robust_lr as rlr

EPS = 16 / 255
CLASSES = 10

#: part of the key under which weights are kept; to be raised with any change of the training
VERSION = 1

#: folder in which trained weights are kept; None trains anew in every process
folder: Path | None = None


def cnn(activation: type[nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """Two convolutions and a linear layer."""
    first, second = ([] if norm is None else [norm(channels)] for channels in (16, 32))
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        *first,
        activation(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        *second,
        activation(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, CLASSES),
    )


def pooled(pool: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), pool(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), pool(2),
        nn.Flatten(), nn.Linear(24 * 7 * 7, CLASSES),
    )  # fmt: skip


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), activation(), nn.Linear(64, CLASSES))


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES))


def with_dropout() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(784, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
    )


class TinyViT(nn.Module):
    """Patches of 7 x 7, one block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 7, stride=7)
        self.position = nn.Parameter(0.02 * torch.randn(16, 32))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(32) for _ in range(3))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2) + self.position
        normed = self.norm1(z)
        z = z + self.attention(normed, normed, normed, need_weights=False)[0]
        z = z + self.feed_forward(self.norm2(z))
        logits: Tensor = self.head(self.norm3(z).mean(1))
        return logits


class Cosine(nn.Module):
    """Cosines between features and prototypes of the classes, raised to [0, 1] by a ReLU of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*cnn()[:-1])
        self.prototypes = nn.Parameter(torch.rand(CLASSES, 32 * 7 * 7))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        features, prototypes = F.normalize(self.features(x), dim=1), F.normalize(self.prototypes.abs(), dim=1)
        return self.scale * features @ prototypes.T


class KWinners(nn.Module):
    """k-WTA (Xiao et al. 2020): all but the largest tenth of the activations of an image are zero."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Sine(nn.Module):
    """A periodic activation of a high frequency."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(10 * x)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn,
    "tanh": lambda: cnn(nn.Tanh),
    "gelu": lambda: cnn(nn.GELU),
    "elu": lambda: cnn(nn.ELU),
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "softplus": lambda: cnn(nn.Softplus),
    "batch norm": lambda: cnn(norm=nn.BatchNorm2d),
    "group norm": lambda: cnn(norm=lambda channels: nn.GroupNorm(4, channels)),
    "layer norm": lambda: cnn(nn.GELU, norm=lambda channels: nn.GroupNorm(1, channels)),
    "max pool": lambda: pooled(nn.MaxPool2d),
    "average pool": lambda: pooled(nn.AvgPool2d),
    "mlp": mlp,
    "linear": linear,
    "dropout": with_dropout,
    "vit": TinyViT,
    "cosine": Cosine,
    "k-wta": lambda: cnn(KWinners),
    "sine": lambda: cnn(Sine),
    "resnet18": lambda: rlr.build_model("resnet18", num_classes=10, in_channels=1, width=0.125, stem="small"),
}


@cache
def training_images() -> tuple[Tensor, Tensor]:
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(4000))
    return x, y


@cache
def trained(
    name: str,
    *,
    robust: bool = False,
    epochs: int = 3,
    temperature: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network of ``ARCHITECTURES`` in eval mode; not to be changed.

    Args:
        robust: trained on images that three steps of PGD perturb.
        temperature: of the softmax in training alone.
        steps: of the optimizer, fewer than the epochs'.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
        about = (VERSION, name, robust, epochs, temperature, steps, seed)
        key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        file = None if folder is None else folder / f"{name.replace(' ', '-')}-{key}.safetensors"
        if file is not None and file.is_file():
            model.load_state_dict(load_file(file))
            return model.eval().requires_grad_(False)
        fit(model, robust=robust, epochs=5 if robust else epochs, temperature=temperature, steps=steps)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model.eval().requires_grad_(False)


def fit(model: nn.Module, *, robust: bool, epochs: int, temperature: float, steps: int | None) -> None:
    x, y = training_images()
    batch = 64
    total = epochs * (len(x) // batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total)
    if isinstance(model, Cosine):
        model.scale = 20.0
    for step in range(min(total, steps or total)):
        if step % (len(x) // batch) == 0:
            order = torch.randperm(len(x))
        rows = order[step % (len(x) // batch) * batch :][:batch]
        images, labels = x[rows], y[rows]
        if robust:
            images = perturbed(model, images, labels)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(images) / temperature, labels).backward()
        optimizer.step()
        schedule.step()
    if isinstance(model, Cosine):
        model.scale = 1.0


def perturbed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    start = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    return rlr.attacks.pgd_linf(model, x, y, eps=EPS, step_size=EPS / 2, steps=3, start=start)


def regular() -> nn.Sequential:
    """A copy of the regularly trained network that most defenses are built around."""
    return copy.deepcopy(trained("cnn"))


def robust() -> nn.Sequential:
    """A copy of the adversarially trained one."""
    return copy.deepcopy(trained("cnn", robust=True))

"""Our networks under their names in timm: ``import robust_lr.timm``, then ``timm.create_model("lrnet26.robust_lr")``.

An import of its own, because timm takes seconds to import and not everyone has it. Names that timm has already, such as
resnet50, stay timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, is_model, register_model
from torch import nn

from .models.build import MODELS, build_model
from .utils.errors import InputError

TAG = "robust_lr"

#: timm's data pipeline shall leave pixels in [0, 1]: our networks normalize them themselves
_CFG = {"input_size": (3, 224, 224), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 0.875}

NAMES = tuple(name for name in MODELS if not is_model(name))

default_cfgs = generate_default_cfgs(
    {f"{name}.{TAG}": {**_CFG, "num_classes": 1000, "first_conv": "conv1", "classifier": "fc"} for name in NAMES}
)


def entry(name: str) -> Callable[..., nn.Module]:
    """Entry point that timm calls: ``build_model`` with timm's names for its arguments."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise InputError(f"there are no pretrained weights of {name}: train it, or load weights of yours")
        if drop_rate:
            raise InputError(f"drop_rate = {drop_rate}: {name} has no dropout, leave it out")
        model = build_model(name, num_classes=num_classes, in_channels=in_chans, **options)
        cfg = {**_CFG, "input_size": (in_chans, 224, 224), "num_classes": num_classes, "architecture": name}
        cfg |= {key: (value[0],) * in_chans for key, value in _CFG.items() if key in ("mean", "std")}  # type: ignore[index]
        model.__dict__.update(pretrained_cfg=cfg, default_cfg=cfg, num_classes=num_classes)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name} of robust-lr: pixels in [0, 1] -> logits; options are those of ``build_model``."
    build.__module__ = __name__
    return build


__all__: list[str] = []  # timm adds the names

for _name in NAMES:
    register_model(entry(_name))

"""Named attack protocols. A protocol fixes every value that changes a robustness number."""

from __future__ import annotations

from .kinds import PGD, Protocol
from .text import choose

__all__ = ["PGD", "PROTOCOLS", "Protocol", "get"]

_LRNET = "Hu et al. 2019 (LR-Net), appendix: values of the ALP release, 16 steps"

PROTOCOLS: dict[str, PGD] = {
    protocol.name: protocol
    for protocol in (
        PGD(name="none", eps=0.0, step_size=0.0, steps=0, start="clean", source="no attack: clean images"),
        PGD(name="lrnet-train", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-targeted", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-untargeted", eps=16 / 255, step_size=1 / 255, steps=16, source=_LRNET),
        PGD(
            name="madry-cifar10", eps=8 / 255, step_size=2 / 255, steps=20, source="Madry et al. 2018, CIFAR-10, PGD-20"
        ),
        PGD(
            name="alp-train",
            eps=16 / 255,
            step_size=2 / 255,
            steps=10,
            targeted=True,
            target="least-likely",
            source="Kannan et al. 2018 (ALP), released code: pgdll_16_2_10",
        ),
        PGD(
            name="xie2019-train",
            eps=16 / 255,
            step_size=1 / 255,
            steps=30,
            targeted=True,
            source="Xie et al. 2019, training",
        ),
        PGD(
            name="madry-train",
            eps=8 / 255,
            step_size=2 / 255,
            steps=10,
            source="Madry et al. 2018, CIFAR-10, 10 steps as in Rice et al. 2020",
        ),
        PGD(
            name="trades-train", eps=0.031, step_size=0.007, steps=10, start="normal", source="Zhang et al. 2019, code"
        ),
        PGD(name="fast-train", eps=8 / 255, step_size=10 / 255, steps=1, source="Wong et al. 2020, CIFAR-10"),
    )
}


def get(name: str) -> PGD:
    """The protocol of that name; InputError, with the list, if there is none."""
    return choose("protocol", name, PROTOCOLS)

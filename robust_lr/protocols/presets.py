"""Named attack protocols. A protocol fixes every value that changes a robustness number."""

from __future__ import annotations

from ..utils.checks import choose
from ..utils.errors import InputError
from .apgd import APGD
from .base import Protocol
from .cascade import Cascade
from .fab import FAB
from .minimal_norm import DDN, FMN
from .pgd import PGD
from .square import Square
from .sweep import Sweep
from .torchattacks import Library

__all__ = ["APGD", "PGD", "PROTOCOLS", "SWEEPS", "Cascade", "Library", "Protocol", "Square", "Sweep", "get", "get_pgd"]


_LRNET = "Hu et al. 2019 (LR-Net), appendix: values of the ALP release, 16 steps"
_ALP = "Kannan et al. 2018 (adversarial logit pairing), released code"
_XIE = "Xie et al. 2019 (feature denoising): step max(1, 16 / steps) / 255"
_MADRY_IMAGENET = "ImageNet evaluation of the robustness library (Engstrom et al. 2019): step 2.5 eps / steps"
_AUTOATTACK = "Croce and Hein 2020, AutoAttack 'standard', official values"
_SWEEP = "Engstrom et al. 2018 on ALP: steps must be swept; ours"
_PLUS = "Croce and Hein 2020, AutoAttack 'plus', official values"
_RAND = "Croce and Hein 2020, AutoAttack 'rand', official values; for models with randomness of their own"
_ONE = "one part of AutoAttack 'standard', official values"
_FAST = "ours: parts of AutoAttack with a sixth of its passes, targets by likelihood, Square last"
_FMN = "Pintor et al. 2021, values of adversarial-library, 100 steps"
_TORCHATTACKS = "torchattacks' defaults, given in full"


def autoattack(name: str, eps: float, norm: str, source: str, balanced: int = 0) -> Cascade:
    """AutoAttack "standard" with the official values; torchattacks' own of that name makes 10 steps, not 100."""
    parts = (
        APGD(name="apgd-ce", eps=eps, norm=norm, restarts=5 if norm == "l1" else 1, source=source),
        APGD(name="apgd-t", eps=eps, norm=norm, loss="dlr", targets=5 if norm == "l1" else 9, source=source),
        FAB(name="fab-t", eps=eps, norm=norm, source=source),
        Square(name="square", eps=eps, norm=norm, source=source),
    )
    return Cascade(name=name, parts=parts, source=source, balanced=balanced)


def autoattack_plus(name: str, eps: float, norm: str) -> Cascade:
    """AutoAttack "plus" with the official values."""
    parts: tuple[Protocol, ...] = (
        APGD(name="apgd-ce", eps=eps, norm=norm, restarts=5, source=_PLUS),
        APGD(name="apgd-dlr", eps=eps, norm=norm, loss="dlr", restarts=5, source=_PLUS),
        FAB(name="fab", eps=eps, norm=norm, targets=0, restarts=5, source=_PLUS),
        Square(name="square", eps=eps, norm=norm, source=_PLUS),
        APGD(name="apgd-t", eps=eps, norm=norm, loss="dlr", targets=9, source=_PLUS),
        FAB(name="fab-t", eps=eps, norm=norm, source=_PLUS),
    )
    return Cascade(name=name, parts=parts, source=_PLUS)


def autoattack_rand(name: str, eps: float, norm: str) -> Cascade:
    """AutoAttack "rand" with the official values: gradients are averaged over 20 passes of the random model."""
    parts = tuple(
        APGD(name=part, eps=eps, norm=norm, loss=loss, eot=20, source=_RAND)
        for part, loss in (("apgd-ce", "cross-entropy"), ("apgd-dlr", "dlr"))
    )
    return Cascade(name=name, parts=parts, source=_RAND)


def madry_imagenet(steps: int) -> PGD:
    eps = 4 / 255
    name = f"madry-imagenet-{steps}"
    return PGD(name=name, eps=eps, step_size=2.5 * eps / steps, steps=steps, source=_MADRY_IMAGENET)


def xie2019(steps: int, record: tuple[int, ...] = ()) -> PGD:
    return PGD(
        name=f"xie2019-targeted-{steps}",
        eps=16 / 255,
        step_size=max(1, 16 / steps) / 255,
        steps=steps,
        targeted=True,
        record=record,
        source=_XIE,
    )


def at_eps(level: int) -> PGD:
    eps = level / 255
    return PGD(name=f"eps-{level}", eps=eps, step_size=2.5 * eps / 40, steps=40, criterion="worst", source="ours")


STEPS = (1, 2, 5, 10, 16, 20, 50, 100, 200, 500, 1000)
LEVELS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255)

_STANDARD = autoattack("autoattack-standard", 8 / 255, "linf", _AUTOATTACK + ", CIFAR-10")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        PGD(name="none", eps=0.0, step_size=0.0, steps=0, start="clean", source="no attack: clean images"),
        PGD(name="lrnet-train", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-targeted", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-untargeted", eps=16 / 255, step_size=1 / 255, steps=16, source=_LRNET),
        PGD(
            name="alp-release",
            eps=16 / 255,
            step_size=1 / 255,
            steps=20,
            targeted=True,
            target="least-likely",
            source=f"{_ALP}: pgdll_16_1_20",
        ),
        PGD(
            name="alp-untargeted-predicted",
            eps=16 / 255,
            step_size=1 / 255,
            steps=20,
            label="predicted",
            source=f"{_ALP}: its untargeted attack, which flatters accuracy on clean mistakes",
        ),
        xie2019(10),
        xie2019(100),
        xie2019(1000, record=(100, 1000)),
        madry_imagenet(20),
        madry_imagenet(100),
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
            source=f"{_ALP}: pgdll_16_2_10",
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
        _STANDARD,
        autoattack("autoattack-standard-imagenet", 4 / 255, "linf", _AUTOATTACK + ", ImageNet"),
        autoattack("autoattack-standard-l2", 0.5, "l2", _AUTOATTACK + ", CIFAR-10 L2"),
        autoattack("autoattack-standard-l1", 12.0, "l1", _AUTOATTACK + ", CIFAR-10 L1"),
        autoattack_plus("autoattack-plus", 8 / 255, "linf"),
        autoattack_plus("autoattack-plus-l2", 0.5, "l2"),
        autoattack_rand("autoattack-rand", 8 / 255, "linf"),
        autoattack_rand("autoattack-rand-imagenet", 4 / 255, "linf"),
        autoattack_rand("autoattack-rand-l2", 0.5, "l2"),
        autoattack(
            "robustbench-imagenet-linf",
            4 / 255,
            "linf",
            "Croce et al. 2021 (RobustBench), ImageNet, crop 224 of 256; RobustBench's own 5,000 images are a list of "
            "files, which `images_list` takes; otherwise others are drawn, balanced over classes",
            balanced=5000,
        ),
        Cascade(
            name="autoattack-fast",
            parts=(
                APGD(name="apgd-dlr", eps=8 / 255, steps=40, loss="dlr", source=_FAST),
                APGD(name="apgd-t", eps=8 / 255, steps=24, loss="dlr", targets=9, source=_FAST),
                APGD(name="apgd-ce", eps=8 / 255, steps=40, source=_FAST),
                FAB(name="fab-t", eps=8 / 255, steps=20, targets=2, source=_FAST),
                Square(name="square", eps=8 / 255, queries=500, source=_FAST),
            ),
            source=_FAST,
        ),
        *(part.with_values(source=_ONE) for part in _STANDARD.parts),
        PGD(
            name="mi-fgsm",
            eps=16 / 255,
            step_size=1.6 / 255,
            steps=10,
            momentum=1.0,
            start="clean",
            source="Dong et al. 2018: eps 16, 10 steps of eps / 10, decay 1",
        ),
        PGD(
            name="di-fgsm",
            eps=16 / 255,
            step_size=1.6 / 255,
            steps=10,
            momentum=1.0,
            start="clean",
            diversity=0.5,
            source="Xie et al. 2019 (diverse inputs), MI-FGSM through images shrunk by up to 10 %",
        ),
        PGD(
            name="ti-fgsm",
            eps=16 / 255,
            step_size=1.6 / 255,
            steps=10,
            momentum=1.0,
            start="clean",
            smoothing=15,
            source="Dong et al. 2019 (translation invariance): MI-FGSM, gradients smoothed by a Gaussian of 15 x 15",
        ),
        FMN(name="fmn-linf", eps=8 / 255, source=_FMN),
        FMN(name="fmn-l2", eps=0.5, norm="l2", source=_FMN),
        FMN(name="fmn-l1", eps=12.0, norm="l1", source=_FMN),
        DDN(name="ddn-l2", eps=0.5, source="Rony et al. 2019, 100 steps; robust beyond 0.5"),
        Library(
            name="cw-l2",
            attack="CW",
            eps=0.5,
            norm="l2",
            options={"c": 1, "kappa": 0, "steps": 50, "lr": 0.01},
            source=f"Carlini and Wagner 2017; {_TORCHATTACKS}; success within 0.5",
        ),
        Library(
            name="deepfool-l2",
            attack="DeepFool",
            eps=0.5,
            norm="l2",
            options={"steps": 50, "overshoot": 0.02},
            source=f"Moosavi-Dezfooli et al. 2016; {_TORCHATTACKS}; success within 0.5",
        ),
        PGD(
            name="sweep-steps",
            eps=16 / 255,
            step_size=1 / 255,
            steps=STEPS[-1],
            record=STEPS,
            source=f"{_LRNET}; {_SWEEP}",
        ),
    )
}


SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            name="xie2019-targeted", axis="steps", parts=(xie2019(10), xie2019(1000, record=(100, 1000))), source=_XIE
        ),
        Sweep(
            name="madry-imagenet",
            axis="steps",
            parts=(madry_imagenet(20), madry_imagenet(100)),
            source=_MADRY_IMAGENET,
        ),
        Sweep(
            name="sweep-eps",
            axis="eps",
            parts=tuple(at_eps(level) for level in LEVELS),
            source="ours: PGD-40, step 2.5 eps / 40; accuracy must fall to 0",
        ),
    )
}


def get(name: str) -> Protocol:
    """Return the protocol of that name; InputError, with the list, if there is none."""
    if name in SWEEPS:
        raise InputError(f"{name!r} is a sweep over several protocols: use robust_lr.sweep, or `robust-lr attack`")
    return choose("protocol", name, PROTOCOLS)


def get_pgd(name: str) -> PGD:
    """Return the PGD protocol of that name, for uses such as training that need PGD; InputError for another kind."""
    protocol = get(name)
    if not isinstance(protocol, PGD):
        raise InputError(f"protocol {name!r} is not PGD: choose one that is, e.g. 'lrnet-train'")
    return protocol

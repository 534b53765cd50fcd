"""Load any model by name with given weights: our own, torchvision's, timm's, or one that a user's callable returns.

Foreign code runs only if the user names it: ``package.module:callable`` or ``file.py:callable``. Weights are tensors,
never unpickled objects.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..utils.checks import check_name, choose
from ..utils.errors import InputError, RunError
from .build import MODELS, build_model
from .checkpoint import is_pickle, read_tensors
from .layers.basic import PRESETS, Normalize, Statistics
from .resnet import ResNet

#: keys under which training scripts save the state dict, and prefixes that wrappers add to its names
_NESTS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_source(
    source: str,
    *,
    weights: str | Path | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str | Statistics | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a model in eval mode, on the CPU: pixels [N, in_channels, H, W] in [0, 1] -> logits.

    Args:
        source: a name of ``MODELS``; ``torchvision:NAME``; ``timm:NAME``; or ``package.module:callable`` or
            ``file.py:callable``, which is imported and called and returns a module.
        weights: a safetensors file, or a .pt file that holds nothing but tensors. Networks that are built by name need
            one, callables may bring their own.
        num_classes, in_channels: sizes of networks that are built by name.
        normalization: the input that the network expects: a key of ``PRESETS`` or (mean, std), which becomes its first
            layer. It is required for torchvision's and timm's networks; our own normalize themselves and take none.
        options: keyword arguments of the builder or the callable.

    Raises:
        InputError: the source, the preset or an option is unknown, or weights are missing, unreadable or do not fit.
        RunError: a library is missing, or the user's code fails.
    """
    kind, colon, name = source.partition(":")
    options, code = dict(options or {}), None
    statistics = choose("preset", normalization, PRESETS) if isinstance(normalization, str) else normalization
    if not colon:
        _check_source(source)
        if statistics is not None:
            raise InputError(f"{source} normalizes its input itself: leave the preset, the mean and the std out")
        model: nn.Module = build_model(source, num_classes=num_classes, in_channels=in_channels, **options)
    elif kind in LIBRARIES:
        if normalization is None:
            raise InputError(
                f"{source}: say what input the network expects, a preset ({', '.join(PRESETS)}) or a mean and a std"
            )
        model = LIBRARIES[kind](name, num_classes, in_channels, options)
    else:
        model, code = _call_source(source, options)
    if weights is not None:
        load_weights(model, Path(weights))
    elif not colon or kind in LIBRARIES:
        raise InputError(f"{source} has no weights yet: give a file of weights; nothing is downloaded")
    if statistics is not None:
        model = nn.Sequential(Normalize(*spread_channels(statistics, in_channels)), model)
    if code is not None:
        _CODE[model] = hashlib.sha256(code.read_bytes()).hexdigest()
    return model.eval()


#: SHA-256 of the file that a model's callable is in, while the model lives
_CODE: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def code_hash(model: nn.Module) -> str | None:
    """Return the SHA-256 of the file whose callable returned ``model``; None where it came from elsewhere."""
    return _CODE.get(model)


def _check_source(name: str) -> None:
    try:
        check_name("model", name, MODELS)
    except InputError as error:
        others = ", ".join([*(f"{library}:NAME" for library in LIBRARIES), "module:callable", "file.py:callable"])
        raise InputError(f"{error}, or {others}") from None


def source_name(source: str, weights: Path | None = None) -> str:
    """Name of the model in results, usable as a folder name: "torchvision-resnet50-mine"."""
    place, colon, attribute = source.rpartition(":")
    name = f"{Path(place).stem if place.endswith('.py') else place}{'-' if colon else ''}{attribute}"
    return name if weights is None else f"{name}-{weights.stem}"


def spread_channels(statistics: Statistics, channels: int) -> Statistics:
    """Expand a single mean and standard deviation to all channels."""
    mean, std = (tuple(values) * (channels if len(values) == 1 else 1) for values in statistics)
    return mean, std


# Builders


def _torchvision(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    models = _import_library("torchvision.models")
    check_name("model of torchvision", name, models.list_models(module=models))
    if in_channels != 3:
        raise InputError(f"torchvision:{name} takes images of 3 channels, these have {in_channels}")
    values = {"weights": None, "num_classes": num_classes, **options}
    model: nn.Module = _build(f"torchvision:{name}", models.get_model, name, **values)
    return model


def _timm(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    timm = _import_library("timm")
    check_name("model of timm", name, timm.list_models())
    values = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels, **options}
    model: nn.Module = _build(f"timm:{name}", timm.create_model, name, **values)
    return model


LIBRARIES: dict[str, Callable[[str, int, int, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}


def _import_library(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another PyTorch
        raise RunError(f"{package} does not import ({error}): pip install {package}") from None


def load_callable(source: str) -> Callable[..., Any]:
    """Return the callable that ``file.py:callable`` or ``package.module:callable`` names; its module is run.

    Raises:
        InputError: no such file, module or callable.
        RunError: the module fails.
    """
    return _target(source, "attack")[0]


def _call_source(source: str, options: dict[str, Any]) -> tuple[nn.Module, Path | None]:
    """Call the callable of ``source``; return its result and the file that it is defined in."""
    target, module = _target(source, "model")
    if isinstance(target, nn.Module):
        raise InputError(f"{source} is a network already: name a callable that returns it")
    file = Path(source.rpartition(":")[0])
    with _import_path(file.resolve().parent if file.suffix == ".py" else Path.cwd()):
        model = _build(source, target, **options)
    if not isinstance(model, nn.Module):
        raise InputError(f"{source} returned {type(model).__name__}: it must return a torch.nn.Module")
    code = getattr(module, "__file__", None)
    return model, None if code is None else Path(code)


def _target(source: str, what: str) -> tuple[Callable[..., Any], ModuleType]:
    """Return the callable that ``source`` names, and its module, which is run."""
    place, _, attribute = source.rpartition(":")
    if not place or not attribute:
        raise InputError(f"{what} {source!r}: write package.module:callable or file.py:callable")
    file = Path(place)
    with _import_path(file.resolve().parent if file.suffix == ".py" else Path.cwd()):
        module = _build(source, _import_file, file) if file.suffix == ".py" else _build(source, _import_name, place)
    target = getattr(module, attribute, None)
    if not callable(target):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{place} has no callable {attribute!r}; it has {', '.join(names) or 'none'}")
    return target, module


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(f"{file} does not exist: write the path of a Python file, or package.module:callable")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None  # because its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    hidden = sys.modules.get(file.stem)
    sys.modules[file.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        if hidden is not None:
            sys.modules[file.stem] = hidden
    return module


def _import_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"no module named {error.name!r}, which {name} belongs to") from None
        raise


def _build(source: str, build: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call ``build`` and turn any error into one line that names the source."""
    try:
        return build(*arguments, **options)
    except (InputError, RunError):
        raise
    except (Exception, SystemExit) as error:  # the user's or a library's code may raise anything
        kind = InputError if isinstance(error, TypeError) and options else RunError
        reason = str(error).partition("\n")[0]
        raise kind(f"{source} failed: {type(error).__name__}: {reason}") from error


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Import modules from ``folder`` first, as a script in that folder would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


# Weights


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy a file's tensors into ``model``; InputError, with the first differences, unless names and shapes agree."""
    tensors = read_weights(file)
    own = model.state_dict()
    # batch norm's counters, which eval mode does not use and files written before PyTorch 0.4.1 lack
    optional = ["num_batches_tracked"]
    if isinstance(model, ResNet):  # torchvision's ResNets have our names, but no statistics of the pixels
        optional += ["normalize.mean", "normalize.std"]
    missing = [name for name in own if name not in tensors and not name.endswith(tuple(optional))]
    extra = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(own[name].shape)} in the network"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    found = {"other shapes": shapes, "missing in the file": missing, "unknown to the network": extra}
    if any(found.values()):
        words = "; ".join(f"{what}: {_list_first(names)}" for what, names in found.items() if names)
        raise InputError(f"{file} does not fit the network; {words}")
    model.load_state_dict(tensors, strict=False)


def _list_first(names: Sequence[str], n: int = 3) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or .pt file under the network's names, without the prefixes of wrappers.

    Raises:
        InputError: a file that is missing or unreadable, or that holds anything that must be unpickled.
    """
    if not file.is_file():
        raise InputError(f"weights {str(file)!r}: no such file")
    tensors = dict(_read_state_dict(file)) if is_pickle(file) else read_tensors(file)[0]
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_state_dict(file: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} holds more than tensors, which would run code when loaded: save model.state_dict() in it"
        ) from None
    except Exception as error:  # a damaged archive: RuntimeError, EOFError, KeyError, ...
        raise InputError(f"{file} is damaged: {str(error).partition(chr(10))[0]}") from None
    nests = [content[key] for key in _NESTS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    state = nests[0] if nests else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise InputError(f"{file} holds no state dict, i.e. tensors by name: save model.state_dict() in it")
    return state

"""Read and write weights and training state: safetensors only, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.files import write_atomic
from .build import build_model
from .resnet import ResNet

WEIGHTS, BEST = "weights.safetensors", "best.safetensors"
SHIPPED = Path(__file__).parents[1] / "assets" / "lrnet26-fashion-mnist-mini.safetensors"
_FORMAT = "robust-lr/1"


def save_weights(path: Path, model: nn.Module, spec: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a model's weights together with the arguments that rebuild it.

    Args:
        spec: keyword arguments of ``build_model``, ``name`` included.
        about: any JSON record of how and on what it was trained.
    """
    write_tensors(path, model.state_dict(), {"model": json.dumps(dict(spec)), "about": json.dumps(dict(about))})


def load_model(path: str | Path | None = None) -> ResNet:
    """Load a trained network in eval mode, on the CPU.

    Args:
        path: a run folder, or a weights file; None is the small adversarially trained LR-Net-26 that ships with the
            package.

    Raises:
        InputError: the file is missing, truncated, pickled or foreign, or its weights do not fit its description.
    """
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    if "model" not in metadata:
        raise InputError(f"{file}: these weights do not say which network they belong to; robust-lr did not write them")
    spec = read_record(metadata, "model", file)
    try:
        model = build_model(spec.pop("name", ""), **spec)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    load_tensors(model, tensors, file)
    return model.eval()


def checkpoint_record(path: str | Path | None = None) -> dict[str, Any]:
    """Read the record that ``save_weights`` stored in a checkpoint."""
    file = weights_file(path)
    with open_weights(file) as content:
        return read_record(content.metadata() or {}, "about", file)


def weights_file(path: str | Path | None) -> Path:
    """Find the weights file of a run folder; a file stands for itself, None for the one that ships with the package."""
    path = SHIPPED if path is None else Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {WEIGHTS}; is it a run folder?" if path.is_dir() else "does not exist"
        raise InputError(f"checkpoint {str(path)!r} {what}")
    return file


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy ``tensors`` into ``model``; InputError, with the first difference, unless names and shapes agree."""
    own = model.state_dict()
    for name in [*own, *tensors]:
        theirs = tuple(tensors[name].shape) if name in tensors else "nothing"
        ours = tuple(own[name].shape) if name in own else "nothing"
        if ours != theirs:
            raise InputError(f"{file}: does not fit the network: {name} is {theirs} in the file, {ours} in the network")
    model.load_state_dict(dict(tensors))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, {"format": _FORMAT, **metadata}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file; InputError if it is not one."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file for lazy reading; InputError if it is not one."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: {_why_unreadable(path)} ({error})") from None


def read_record(metadata: Mapping[str, str], key: str, file: Path) -> dict[str, Any]:
    """Parse the JSON object under ``key`` of a file's metadata, empty if there is none."""
    try:
        record = json.loads(metadata.get(key, "{}"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{file}: its description {key!r} is not a JSON object: {metadata[key][:40]!r}")
    return record


def is_pickle(path: Path) -> bool:
    """Return True if a file begins like one of torch.save, or another pickle, and not like safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    # a safetensors file begins with its header's length, which may have any byte first, and a JSON object
    return head[8:] != b"{" and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80")


def _why_unreadable(path: Path) -> str:
    try:
        pickled = is_pickle(path)
    except OSError:
        return "cannot be read"
    if pickled:
        return "this is a pickled PyTorch file, which could run code when loaded; convert it to safetensors"
    return "not a safetensors file, or a truncated one"


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of names, dtypes, shapes and bytes of the state dict, in its order."""
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of names, dtypes, shapes and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

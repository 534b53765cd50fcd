"""Models whose output is not the logits but contains them: an object with ``.logits``, or a tuple."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..utils.errors import InputError


class LogitsOf(nn.Module):
    """A model whose logits are taken out of what it returns, see ``logits_of``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return logits_of(self.model(x))[0]


def logits_of(output: Any) -> tuple[Any, str]:
    """Return a model's logits and where they were in its output: "logits" themselves, ".logits of X", "first of 3".

    Any other output is returned as it is, and the guards refuse it.

    Raises:
        InputError: the output's logits are None or another type than a tensor.
    """
    if isinstance(output, Tensor):
        return output, "logits"
    kind = type(output).__name__
    if hasattr(output, "logits") or (isinstance(output, dict) and "logits" in output):
        logits = output["logits"] if isinstance(output, dict) else output.logits
        if not isinstance(logits, Tensor):
            found = "None" if logits is None else type(logits).__name__
            raise InputError(f"the model returns {kind} whose logits are {found}: a tensor [N, classes] is needed")
        return logits, f".logits of {kind}"
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0], f"first of {len(output)} values"
    return output, kind

"""The local relation operator: one call for every device, dtype and memory layout."""

from torch import Tensor

from robust_lr import reference
from robust_lr.reference import Border, Composability, Normalization


def local_relation(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    geo: Tensor | None,
    *,
    kernel_size: int | None = None,
    stride: int = 1,
    channels_per_group: int = 8,
    composability: Composability = "squared_difference",
    normalization: Normalization = "softmax",
    border: Border = "mask",
) -> Tensor:
    """Aggregate each window of `x` with weights composed from `q` and `k` (paper section 4).

        logit[g, p', p] = sum_j Phi(q[g, j, p'], k[g, j, p]) + geo[g, p - p']     p in the K x K window around p'
        y[c, p']        = sum_p softmax_p(logit[c // m, p', p]) * x[c, p]

    Args:
        x: values [N, C, H, W].
        q: queries [N, G*d, Ho, Wo] on the output grid, Ho = ceil(H / stride); component j of group g is channel
            g*d + j. There are G = ceil(C / channels_per_group) groups of consecutive channels, the last one short
            where C is not divisible (ours). One component (d = 1) is the paper's layer; "product" with d > 1 is
            the dot product of its Table 4.
        k: keys [N, G*d, H, W] on the input grid, laid out like q.
        geo: geometric prior [G, K, K] added to the logits, in float32 or wider; or None, with `kernel_size` given.
        kernel_size: K, odd; needed only where geo is None.
        stride: windows are centered at stride * p', as in a convolution with padding K // 2.
        channels_per_group: m, the channels that share one set of weights.
        composability: Phi: -(q - k)**2, -|q - k| or q * k.
        normalization: "softmax", or "none" to use the logits as the weights (ablation of the paper's Table 6).
        border: positions outside the image take no part ("mask", ours), or take part with k = 0 and x = 0 ("zero").

    Returns:
        y [N, C, Ho, Wo] in the widest dtype of x, q and k, in x's memory format. Logits and sums are float32, or
        float64 for float64 inputs.

    Raises:
        InputError: for a shape, dtype, device or option that does not fit.
    """
    return reference.local_relation(
        x, q, k, geo, kernel_size=kernel_size, stride=stride, channels_per_group=channels_per_group,
        composability=composability, normalization=normalization, border=border,
    )  # fmt: skip

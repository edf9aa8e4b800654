"""One matrix product, by the kernel that is best on the device. Weights lie as [inputs, outputs]: see engine/loader.py.

On a CPU oneDNN's product is taken instead of BLAS: measured against `F.linear` on one thread it needs about half the
time both at decode batches (it reads weights that lie [inputs, outputs] at memory speed, without packing them) and at
prefill chunks. Shapes: M = rows, K = inputs, N = outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HAS_ONEDNN: bool = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_onednn_linear = torch.ops.mkldnn._linear_pointwise.default if _HAS_ONEDNN else None


def linear(x_MK: Tensor, weight_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x @ weight (+ bias) -> [M, N]. `weight_KN` may be a transposed view; neither layout is copied."""
    if _onednn_linear is not None and x_MK.device.type == "cpu":
        return _onednn_linear(x_MK, weight_KN.t(), bias_N, "none", [], "")  # type: ignore[no-any-return]
    return x_MK @ weight_KN if bias_N is None else torch.addmm(bias_N, x_MK, weight_KN)

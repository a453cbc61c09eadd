"""Products of large float32 matrices on a GPU whose tensor cores are much faster than its float32: six of bfloat16.

A float32 is the sum of three bfloat16, each the rest of those before it. Of the nine products of two such sums the
three smallest lie below the last bit of a float32 and are left out; the six others are summed in float32.
"""

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear

from skiprnn.engines import graph_kernels as kernels
from skiprnn.engines.graph_iterations import launch_options

WORTH = 2**31  # multiplications of a product from which the preparation pays
NARROWEST = 128  # rows and columns from which it does
FAST = (
    (8, 0),
    (9, 0),
    (10, 0),
)  # compute capabilities of A100, H100 and B200: twelve times or more as fast in bfloat16
LONGEST = 2048  # of the sums of the largest products: tensor cores cut off what is below a sum's last bit
AT_A_TIME = 2**25  # numbers of the larger matrix, of which six times as many bfloat16 are made


def product(a: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ weight.T, (..., K), (N, K) -> (..., N), perhaps into ``out``."""
    rows = a.numel() // a.shape[-1] if a.numel() else 0
    if not pays(a, rows, *weight.shape):
        return linear(a, weight) if out is None else torch.mm(a, weight.T, out=out)
    flat, K = a.reshape(rows, a.shape[-1]), a.shape[-1]
    made = a.new_empty(rows, len(weight)) if out is None else out
    one, two, three = split(weight, 3).chunk(3, 1)
    others = torch.cat([two, one, two, three, one], 1).T
    step = max(AT_A_TIME // K, NARROWEST)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        pieces = split(flat[some], 6)
        _mm(pieces[:, K:], others, made[some])
        for k in range(0, K, LONGEST):
            made[some] += _mm(pieces[:, k : min(k + LONGEST, K)], one[:, k : k + LONGEST].T)
    return made.view(*a.shape[:-1], len(weight))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a.T @ b, (K, M), (K, N) -> (M, N), summed in float32."""
    if a.dtype != total.dtype:
        total += _mm(a.T, b)
        return
    if not pays(a, a.shape[1], b.shape[1], a.shape[0]):
        total.addmm_(a.T, b)
        return
    step = max(AT_A_TIME // max(a.shape[1], b.shape[1]), NARROWEST)
    for start in range(0, len(a), step):
        left = [piece.T for piece in split(a[start : start + step], 3).chunk(3, 1)]
        right = split(b[start : start + step], 3).chunk(3, 1)
        for i, k in ((0, 2), (2, 0), (1, 1), (0, 1), (1, 0)):
            total += _mm(left[i], right[k])
        for k in range(0, right[0].shape[0], LONGEST):
            total += _mm(left[0][:, k : k + LONGEST], right[0][k : k + LONGEST])


def pays(a: Tensor, *sizes: int) -> bool:
    """Whether a product of such sizes is faster so, and wanted in float32."""
    if a.dtype != torch.float32 or min(sizes) < NARROWEST or sizes[0] * sizes[1] * sizes[2] < WORTH:
        return False
    is_fast = not a.is_cuda or torch.cuda.get_device_capability(a.device) in FAST
    return is_fast and torch.backends.cuda.matmul.fp32_precision != "tf32"


def split(x: Tensor, pieces: int) -> Tensor:
    """The bfloat16 of each number, (R, K) -> (R, pieces * K): 1, 2 and 3; or, of six, 1, 1, 2, 2, 1 and 3."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, K = x.shape
    made = x.new_empty(rows, pieces * K, dtype=torch.bfloat16)
    block = min(triton.next_power_of_2(K), 1024)
    kernels.split[(rows, triton.cdiv(K, block))](
        x, made, x.stride(0), K, SIX=pieces == 6, BLOCK=block, **launch_options()
    )
    return made


def _mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """A product of bfloat16, summed in float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)

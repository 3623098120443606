"""`linear`: x W^T + b of fp32 tensors on a CPU, on whichever of torch's two product libraries is faster there.

`torch.nn.functional.linear` multiplies with MKL, which takes AVX2 code on a CPU that is not Intel's. The oneDNN that
torch carries as well takes AVX-512 wherever it is there: about twice as fast on an AMD EPYC of 2024.
"""

from .modules import PACKED, fast_linears, halves, packed_linears
from .op import linear

__all__ = ["PACKED", "fast_linears", "halves", "linear", "packed_linears"]

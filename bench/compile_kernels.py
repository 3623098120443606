"""Compile every Triton kernel for NVIDIA GPUs ahead of time, on a machine that needs none, and check what came out.

Each `kernels/<op>/*triton*.py` lists its variants in `AOT`: dicts of kernel, signature, constexprs and options, and
where it matters `aligned` (arguments that are multiples of 16, as a launch would find), `wgmma` (the tensor cores'
own instructions must be there on sm_90 and sm_100) and `name`. A kernel that spills registers, takes more shared
memory than the architecture has, or lacks the instructions it must have is a fault.

Run: python -m vstar_fast.bench.compile_kernels [--arch 80 90 100] [--op prefix_attention]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

ARCHS = (80, 90, 100)
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that one block may have."""
TENSOR_CORES = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The instructions that feed the tensor cores from shared memory; elsewhere it is mma.sync."""


class Compiled(NamedTuple):
    """One kernel for one architecture: registers a thread, bytes of shared memory, bytes spilled a thread."""

    op: str
    variant: int
    kernel: str
    arch: int
    cubin_bytes: int
    registers: int | None
    shared_bytes: int | None
    spill_bytes: int | None
    name: str = ""
    tensor_cores: str = ""
    faults: tuple[str, ...] = ()


def kernel_modules() -> list[tuple[str, Any]]:
    """(op, module) of every Triton file in an op folder."""
    import vstar_fast.kernels as root

    found = []
    for op in pkgutil.iter_modules(root.__path__):
        package = importlib.import_module(f"vstar_fast.kernels.{op.name}") if op.ispkg else None
        for info in pkgutil.iter_modules(package.__path__) if package else ():
            if "triton" in info.name:
                found.append((op.name, importlib.import_module(f"vstar_fast.kernels.{op.name}.{info.name}")))
    return found


def compile_variant(op: str, index: int, variant: dict[str, Any], arch: int) -> Compiled:
    """Compile one entry of an AOT list for sm_<arch>."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant["kernel"]
    places = [kernel.arg_names.index(name) for name in variant.get("aligned", ())]
    source = ASTSource(
        fn=kernel,
        signature=variant["signature"],
        constexprs=variant["constexprs"],
        attrs={(place,): [["tt.divisibility", 16]] for place in places},
    )
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant.get("options"))
    if not made.asm.get("cubin"):
        raise RuntimeError(f"{op}: Triton gave no cubin for sm_{arch}")
    registers, spill = resources(made.asm["cubin"])
    name, shared = made.metadata.name, getattr(made.metadata, "shared", None)
    used = tensor_cores(made.asm["ptx"])
    faults = tuple(_faults(arch, shared, spill, used, variant.get("wgmma", False)))
    cubin = len(made.asm["cubin"])
    return Compiled(op, index, name, arch, cubin, registers, shared, spill, variant.get("name", ""), used, faults)


def tensor_cores(ptx: str) -> str:
    """Which instructions multiply matrices in a kernel; empty where none do."""
    known = (*TENSOR_CORES.values(), "mma.sync")
    return next((name for name in known if name in ptx), "")


def _faults(arch: int, shared: int | None, spill: int | None, used: str, wanted: bool) -> Iterator[str]:
    if shared is None or shared > SHARED_BYTES[arch]:
        yield f"{shared} B of shared memory, sm_{arch} has {SHARED_BYTES[arch]}"
    if spill is None:
        yield "registers and spills are not known: Triton came without cuobjdump"
    elif spill:
        yield f"{spill} B spilled a thread"
    if wanted and arch in TENSOR_CORES and used != TENSOR_CORES[arch]:
        yield f"no {TENSOR_CORES[arch]}, but {used or 'no tensor cores'}"


def resources(cubin: bytes) -> tuple[int | None, int | None]:
    """(registers, bytes of stack) a thread, as Triton's cuobjdump reads them; None where it has none."""
    import subprocess
    import tempfile

    try:
        from triton import knobs

        tool = knobs.nvidia.cuobjdump.path
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    except (ImportError, AttributeError, OSError, RuntimeError):
        return None, None
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (None, None)


def compile_all(archs: tuple[int, ...] = ARCHS, op: str = "") -> list[Compiled]:
    """Every variant of every op (or of one) for every architecture."""
    return [
        compile_variant(name, index, variant, arch)
        for name, module in kernel_modules()
        if op in ("", name)
        for index, variant in enumerate(module.AOT)
        for arch in archs
    ]


def describe(row: Compiled) -> str:
    """One line for people."""
    used = f", {row.tensor_cores}" if row.tensor_cores else ""
    return (
        f"sm_{row.arch} {row.op}[{row.variant}] {row.kernel}{f' ({row.name})' if row.name else ''}: cubin "
        f"{row.cubin_bytes} B, registers {row.registers}, shared {row.shared_bytes} B, stack {row.spill_bytes} B{used}"
    )


def main() -> int:
    """Print one line a compiled kernel; exit status 1 when there is none, or one with a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), choices=list(SHARED_BYTES))
    parser.add_argument("--op", default="", help="only this op")
    arguments = parser.parse_args()
    rows = compile_all(tuple(arguments.arch), arguments.op)
    for row in rows:
        print(describe(row))
    faults = [f"FAULT: {describe(row)}: {fault}" for row in rows for fault in row.faults]
    print(*faults, f"compiled {len(rows)} Triton kernel variants, {len(faults)} faults", sep="\n")
    return 0 if rows and not faults else 1


if __name__ == "__main__":
    sys.exit(main())

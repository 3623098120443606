"""Compile every Triton kernel for NVIDIA GPUs ahead of time, on a machine that needs none.

Each `kernels/<op>/triton_kernel.py` lists its variants in `AOT`: dicts of kernel, signature, constexprs and
options. Run: python -m vstar_fast.bench.compile_kernels [--arch 80 90]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import re
import sys
from typing import Any, NamedTuple

ARCHS = (80, 90)


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


def kernel_modules() -> list[tuple[str, Any]]:
    """(op, module) of every op folder that has a triton_kernel.py."""
    import vstar_fast.kernels as root

    found = []
    for info in pkgutil.iter_modules(root.__path__):
        name = f"vstar_fast.kernels.{info.name}.triton_kernel"
        if info.ispkg and importlib.util.find_spec(name) is not None:
            found.append((info.name, importlib.import_module(name)))
    return found


def compile_variant(op: str, index: int, variant: dict[str, Any], arch: int) -> Compiled:
    """Compile one entry of an AOT list for sm_<arch>."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=variant["kernel"], signature=variant["signature"], constexprs=variant["constexprs"])
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant.get("options"))
    if not made.asm.get("cubin"):
        raise RuntimeError(f"{op}: Triton gave no cubin for sm_{arch}")
    registers, spill = resources(made.asm["cubin"])
    name, shared = made.metadata.name, getattr(made.metadata, "shared", None)
    return Compiled(op, index, name, arch, len(made.asm["cubin"]), registers, shared, spill)


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


def compile_all(archs: tuple[int, ...] = ARCHS) -> list[Compiled]:
    """Every variant of every op for every architecture."""
    return [
        compile_variant(op, index, variant, arch)
        for op, module in kernel_modules()
        for index, variant in enumerate(module.AOT)
        for arch in archs
    ]


def main() -> int:
    """Print one line a compiled kernel; exit status 1 when there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS))
    rows = compile_all(tuple(parser.parse_args().arch))
    for row in rows:
        print(
            f"sm_{row.arch} {row.op}[{row.variant}] {row.kernel}: cubin {row.cubin_bytes} B, "
            f"registers {row.registers}, shared {row.shared_bytes} B, stack {row.spill_bytes} B"
        )
    print(f"compiled {len(rows)} Triton kernel variants")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())

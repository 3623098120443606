#!/usr/bin/env bash
# Proves and measures vstar-fast on a machine with an NVIDIA GPU; needs no network. Run it from the repository:
#
#   bench/on_gpu.sh OUTDIR            every step that has not succeeded yet, in order
#   bench/on_gpu.sh OUTDIR STEP       one step: env build compile test sanitizer bench-<name> roofline unproven
#
# A step that succeeded leaves OUTDIR/<step>.done and is not run again; each fits ten minutes. PYTHON names the
# interpreter (with torch, pytest, hypothesis), WHEELS a folder of wheels to install what is missing from. Figures to keep go from
# OUTDIR/bench-<name>.json to bench/results/, and OUTDIR/ROOFLINE.md to bench/.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,9p' "$0"; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
HERE=$(cd "$(dirname "$0")" && pwd)
cd "$HERE/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels}
LIMIT=${LIMIT:-540}
export PYTHONUNBUFFERED=1 VSTAR_REQUIRE_GPU=1
unset TRITON_INTERPRET
if [ -d "$OUT/tree" ]; then export PYTHONPATH="$OUT/tree" PYTHONSAFEPATH=1; fi

step_env() {
  nvidia-smi
  "$PYTHON" --version
  command -v nvcc cmake ninja g++ || true
  nvcc --version | tail -2 || echo "no nvcc: the CUDA kernels cannot be built here"
  if [ -d "$WHEELS" ]; then
    local wheel name
    for wheel in "$WHEELS"/*.whl; do
      name=$(basename "$wheel" | cut -d- -f1)
      "$PYTHON" -m pip show -q "$name" 2>/dev/null ||
        "$PYTHON" -m pip install -q --no-index --no-deps --find-links "$WHEELS" "$wheel" || echo "could not install $wheel"
    done
  fi
  "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name(0))"
  "$PYTHON" -m pip list 2>/dev/null | grep -iE 'torch|triton|transformers|peft|flash|dali|^av |numpy|pybind|scikit|cmake|ninja' || true
}

step_build() {
  VSTAR_CUDA=ON "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index -e . ||
    { echo "no scikit-build-core: building with cmake alone"; build_in_tree; }
  if [ -d "$OUT/tree" ]; then export PYTHONPATH="$OUT/tree" PYTHONSAFEPATH=1; fi
  "$PYTHON" -c "import vstar_fast._C as c; assert c.has_cuda, '_C was built without CUDA'; print(c.__file__)"
}

# Spills, shared memory and tensor cores of the Triton kernels, as this machine's Triton compiles them.
step_compile() {
  "$PYTHON" -m vstar_fast.bench.compile_kernels --arch "$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')"
}

# What an install does, with cmake and pybind11 alone: OUTDIR/tree has kernels/ and bench/ inside vstar_fast/.
build_in_tree() {
  local tree="$OUT/tree/vstar_fast" pybind
  pybind=$("$PYTHON" -m pybind11 --cmakedir)
  cmake -S . -B "$OUT/cmake" -DVSTAR_CUDA=ON -Dpybind11_DIR="$pybind" -DPython_EXECUTABLE="$(command -v "$PYTHON")"
  cmake --build "$OUT/cmake" -j
  rm -rf "$OUT/tree" && mkdir -p "$tree"
  ln -s "$PWD"/vstar_fast/* "$PWD/kernels" "$PWD/bench" "$tree/"
  cp "$OUT"/cmake/_C*.so "$tree/"
}

step_test() { "$PYTHON" -m pytest -m gpu -q --continue-on-collection-errors --junitxml="$OUT/gpu-tests.xml"; }

# Memory errors and races in the kernels of the ops, on their GPU tests; where the tool is missing it is said. Every tensor
# is an allocation of its own: between two of torch's cache, reads and writes out of bounds would not be seen.
step_sanitizer() {
  local tool check
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1 || true)
  [ -n "$tool" ] || { echo "no compute-sanitizer here: the kernels' memory accesses are not proved"; return 0; }
  for check in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$check" --error-exitcode 9 --target-processes all \
      "$PYTHON" -m pytest -m gpu -q -k "(label or constrain or value or (on_a_gpu and (nested or 130 or patchify))) and not graphs" tests/ops
  done
}

# The page of predictions and of what was measured here.
step_roofline() { "$PYTHON" -m vstar_fast.bench.roofline_page "$OUT" >"$OUT/ROOFLINE.md" && cat "$OUT/ROOFLINE.md"; }

step_bench() { "$PYTHON" -m vstar_fast.bench.runner "$1" --json "$OUT/bench-$1.json"; }

# Prints what this folder does not prove: packages that are not here, skipped tests, failed steps.
step_unproven() {
  "$PYTHON" - "$OUT" <<'PY'
import sys
from pathlib import Path
from xml.etree import ElementTree

from vstar_fast import backends

out = Path(sys.argv[1])
lines = []
for package, what in {
    "dali": "video decoding by DALI on the GPU (NVDEC)",
    "flash-attn-4": "flash-attention 4", "flash-attn-3": "flash-attention 3", "flash-attn-2": "flash-attention 2",
}.items():
    probe = backends.available(package)
    used = any(package in order for orders in backends.ORDER.values() for order in orders.values())
    if not probe.ok:
        lines.append(f"{what}: {probe.why}")
    elif not used:
        lines.append(f"{what}: installed, but no stage uses it yet")
tests = out / "gpu-tests.xml"
if tests.exists():
    cases = list(ElementTree.parse(tests).iter("testcase"))
    print(f"gpu tests: {len(cases)}")
    for case in cases:
        for outcome in ("skipped", "failure", "error"):
            found = case.find(outcome)
            if found is not None:
                lines.append(f"{outcome}: {case.get('name')}: {(found.get('message') or '')[:100]}")
else:
    lines.append("gpu tests: not run")
for log in sorted(out.glob("*.log")):
    if not log.with_suffix(".done").exists() and log.stem != "unproven":
        lines.append(f"step {log.stem}: failed, see {log}")
print("UNPROVEN on this machine:" if lines else "nothing on the list is unproven")
for line in lines:
    print(f"  - {line}")
PY
}

benches() { "$PYTHON" -c "from vstar_fast.bench import runner; print(*runner.names())" 2>/dev/null || true; }

# Runs one step under its time limit, keeps its output, stamps it when it succeeded.
run_step() {
  local step=$1 status=0
  [ -e "$OUT/$step.done" ] && { echo "== $step: done before"; return 0; }
  echo "== $step"
  timeout "$LIMIT" bash "$HERE/on_gpu.sh" "$OUT" "--inside=$step" 2>&1 | tee "$OUT/$step.log" || status=$?
  if [ "$status" = 0 ]; then touch "$OUT/$step.done"; else echo "== $step FAILED (status $status)"; fi
  return "$status"
}

inside() {
  case $1 in
    bench-*) step_bench "${1#bench-}" ;;
    env | build | compile | test | sanitizer | roofline | unproven) "step_$1" ;;
    *) echo "unknown step $1; steps: env build compile test sanitizer $(benches | sed 's/[^ ]*/bench-&/g') roofline unproven"; exit 2 ;;
  esac
}

case ${2:-all} in
  --inside=*) inside "${2#--inside=}" ;;
  all)
    failed=0
    run_step env || exit 1
    run_step build || exit 1
    run_step compile || failed=1
    run_step test || failed=1
    run_step sanitizer || failed=1
    for name in $(benches); do run_step "bench-$name" || failed=1; done
    rm -f "$OUT/roofline.done" "$OUT/unproven.done"
    run_step roofline || failed=1
    run_step unproven
    exit "$failed"
    ;;
  *) run_step "$2" ;;
esac

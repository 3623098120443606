#!/usr/bin/env bash
# Proves and measures vstar-fast on a machine with an NVIDIA GPU; needs no network. Run it from the repository:
#
#   bench/on_gpu.sh OUTDIR            every step that has not succeeded yet, what is wanted most first
#   bench/on_gpu.sh OUTDIR STEP       one step: env wheels build test benches bench-<name> memcheck racecheck families
#                                     compile roofline unproven
#
# A step that succeeded leaves OUTDIR/<step>.done and is not run again, nor is a bench that has all its rows in
# OUTDIR/<step>.json; remove these files to have it run once more. A step has LIMIT seconds (540), all of them together TOTAL
# (1740), and begins only where what it TAKES is left: the others run at the next call. A bench that is cut short leaves the
# rows it has. Without nvcc the CUDA kernels are not built, and what needs them does not run. What did not run is listed at
# the end.
#
#   PYTHON    the interpreter (with torch, pytest, hypothesis); WORKERS (8) processes run its tests where pytest-xdist is there
#   CUDA      the toolkit (/usr/local/cuda)
#   WHEELS    a folder of wheels (wheels/), to install what is missing from. One too large to be brought at once may come in
#             parts, some at each call: split -b 50M -d X.whl X.whl.part && sha256sum X.whl >X.whl.sha256
#   KEEP      a file: after each step an archive of OUTDIR's logs and figures
#   VSTAR_FAST_CACHE   where the benches of constrain and of the matches find the demo's tokenizer (model/vstar-demo-*/)
#
# Figures to keep go from OUTDIR/bench-<name>.json to bench/results/, and OUTDIR/ROOFLINE.md to bench/.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,/^set /{/^#/p}' "$0"; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
HERE=$(cd "$(dirname "$0")" && pwd)
cd "$HERE/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels}
LIMIT=${LIMIT:-540}
TOTAL=${TOTAL:-1740}
WORKERS=${WORKERS:-8}
FAMILIES=tests/test_families_on_gpu.py
PART=64                                                                           # exit status of a step done in part
FIRST="prefix_attention decode_step train_step constrain tree_attention label_match patchify sample"   # in this order
OTHER="attention generate score value_match decode constrained_answers cycle"
ON_CPU="crew finetune half_linear linear"                                                   # benches that measure a CPU alone
NEED_CUDA="constrain constrained_answers label_match value_match"                 # benches of the CUDA kernels
# Seconds that a step takes, about, on 16 cores and an H200; guesses until one has run.
declare -A TAKES=([env]=20 [wheels]=30 [build]=90 [test]=240 [benches]=15 [memcheck]=200 [racecheck]=200 [families]=240
  [compile]=60 [roofline]=10 [unproven]=10 [bench-prefix_attention]=180 [bench-decode_step]=180 [bench-tree_attention]=60 [bench-train_step]=60
  [bench-constrain]=60 [bench-label_match]=90 [bench-patchify]=20 [bench-sample]=50 [bench-attention]=30
  [bench-generate]=90 [bench-cycle]=150 [bench-constrained_answers]=90 [bench-score]=40 [bench-value_match]=60 [bench-decode]=200)
CUDA_TESTS="label or constrain or value"                                          # tests of them, as pytest's -k
CUDA=${CUDA:-$(ls -d /usr/local/cuda* 2>/dev/null | head -1 || true)}
PATH="$PATH:$CUDA/bin"
nvcc=$(command -v nvcc || true)
export PYTHONUNBUFFERED=1 VSTAR_REQUIRE_GPU=1 HF_HUB_OFFLINE=1 PIP_NO_INDEX=1 PIP_FIND_LINKS="$OUT/wheels"
unset TRITON_INTERPRET
if [ -d "$OUT/tree" ]; then export PYTHONPATH="$OUT/tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1; fi

step_env() {
  nvidia-smi
  "$PYTHON" --version
  command -v nvcc cmake ninja g++ || true
  nvcc --version | tail -2 || echo "no nvcc: the CUDA kernels cannot be built here"
  "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name(0))"
  "$PYTHON" -m pip list 2>/dev/null | grep -iE 'torch|triton|transformers|peft|flash|dali|^av |numpy|pybind|scikit|cmake|ninja' || true
}

# Puts together the wheels of which all parts have come, and installs what is missing.
step_wheels() {
  [ -d "$WHEELS" ] || { echo "no folder $WHEELS"; return 0; }
  mkdir -p "$OUT/wheels"
  find "$WHEELS" -maxdepth 1 -type f -name '*.whl*' -exec cp -f {} "$OUT/wheels/" \;
  local sum whole wheel name missing=""
  for sum in "$OUT"/wheels/*.sha256; do
    whole=${sum%.sha256}
    [ -e "$sum" ] && [ ! -e "$whole" ] || continue
    cat "$whole".part* >"$whole.new" 2>/dev/null || true
    if [ "$(sha256sum <"$whole.new" | cut -d' ' -f1)" = "$(cut -d' ' -f1 "$sum")" ]; then
      mv "$whole.new" "$whole"
      rm -f "$whole".part*
    else
      missing+=" $(basename "$whole")"
    fi
  done
  for wheel in "$OUT"/wheels/*.whl; do
    [ -e "$wheel" ] || continue
    name=$(basename "$wheel" | cut -d- -f1)
    "$PYTHON" -m pip show -q "$name" 2>/dev/null && continue
    "$PYTHON" -m pip install -q --no-deps "$wheel" || missing+=" $name (it cannot be installed)"
  done
  [ -z "$missing" ] || in_part wheels "$missing, whose parts are not all here"
}

# Notes what a step does without, and why. It is then not stamped.
in_part() {
  forget "$1"
  echo "$1: without $2" | tee -a "$OUT/not-run"
  return "$PART"
}

forget() { if [ -e "$OUT/not-run" ]; then sed -i "/^$1:/d" "$OUT/not-run"; fi; }

step_build() {
  export VSTAR_CUDA=ON
  [ -n "$nvcc" ] || VSTAR_CUDA=OFF
  VSTAR_CUDA_ARCH=${VSTAR_CUDA_ARCH:-$(capability)-real} # for this card alone: half the time
  export VSTAR_CUDA_ARCH
  "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index -e . ||
    { echo "no scikit-build-core: building with cmake alone"; build_in_tree; }
  if [ -d "$OUT/tree" ]; then export PYTHONPATH="$OUT/tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1; fi
  "$PYTHON" -c "import vstar_fast._C as c; print(c.__file__)"
  [ -n "$nvcc" ] || in_part build "the CUDA kernels: there is no nvcc"
  has_cuda_code || { echo "_C was built without CUDA"; return 1; }
}

capability() { "$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())'; }

has_cuda_code() { "$PYTHON" -c "import vstar_fast._C as c; raise SystemExit(not c.has_cuda)"; }

# Spills, shared memory and tensor cores of the Triton kernels, as this machine's Triton compiles them.
step_compile() {
  "$PYTHON" -m vstar_fast.bench.compile_kernels --arch "$(capability)"
}

# What an install does, with cmake and pybind11 alone: OUTDIR/tree has kernels/ and bench/ inside vstar_fast/.
build_in_tree() {
  local tree="$OUT/tree/vstar_fast" pybind
  pybind=$("$PYTHON" -m pybind11 --cmakedir)
  cmake -S . -B "$OUT/cmake" -Dpybind11_DIR="$pybind" -DPython_EXECUTABLE="$(command -v "$PYTHON")"
  cmake --build "$OUT/cmake" -j
  rm -rf "$OUT/tree" && mkdir -p "$tree"
  ln -s "$PWD"/vstar_fast/* "$PWD/kernels" "$PWD/bench" "$tree/"
  cp "$OUT"/cmake/_C*.so "$tree/"
}

# Tests that need a GPU, in several processes: most of their time Triton compiles.
gpu_tests() {
  local several=()
  if "$PYTHON" -c "import xdist" 2>/dev/null; then several=(-n "$WORKERS" --dist worksteal); fi
  "$PYTHON" -m pytest -m gpu -q --continue-on-collection-errors "${several[@]}" "$@"
}

step_test() {
  local tests=() files
  has_cuda_code || tests=(-k "not ($CUDA_TESTS)")
  # files with tests for a GPU alone: the others may need packages that are not here
  mapfile -t files < <(grep -rlE 'mark\.gpu|def test_.*\bdevice\b' tests --include='test_*.py' | grep -vxF "$FAMILIES" | sort)
  gpu_tests --junitxml="$OUT/gpu-tests.xml" "${files[@]}" "${tests[@]}"
  [ "${#tests[@]}" = 0 ] || in_part test "tests of the CUDA kernels, which are not built"
}

# Answers, label scores and training of every family against a CPU's.
step_families() { gpu_tests --junitxml="$OUT/gpu-families.xml" "$FAMILIES"; }

# Memory errors, or races, in the kernels of the ops, on their GPU tests. Every tensor is an allocation of its own:
# between two of torch's cache, reads and writes out of bounds would not be seen.
step_sanitizer() {
  local tool ours=0 tests="bad_rows or (on_a_gpu and (nested or 130 or patchify))"
  tool=$(command -v compute-sanitizer) || { echo "no compute-sanitizer here: the kernels' memory accesses are not proved"; return 1; }
  if has_cuda_code; then ours=1; tests="$CUDA_TESTS or $tests"; fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$1" --error-exitcode 9 --target-processes all \
    "$PYTHON" -m pytest -m gpu -q -k "($tests) and not graphs" tests/ops
  [ "$ours" = 1 ] || in_part "$1" "the CUDA kernels, which are not built"
}

# The page of predictions and of what was measured here.
step_roofline() { "$PYTHON" -m vstar_fast.bench.roofline_page "$OUT" >"$OUT/ROOFLINE.md" && cat "$OUT/ROOFLINE.md"; }

step_benches() {
  "$PYTHON" -c "from vstar_fast.bench import runner; print(*runner.names(), sep='\n')" >"$OUT/benches"
  cat "$OUT/benches"
}

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
for name in ("gpu-tests", "gpu-families"):
    tests = out / f"{name}.xml"
    if not tests.exists():
        lines.append(f"{name}: not run")
        continue
    cases = list(ElementTree.parse(tests).iter("testcase"))
    print(f"{name}: {len(cases)}")
    for case in cases:
        for outcome in ("skipped", "failure", "error"):
            found = case.find(outcome)
            if found is not None:
                lines.append(f"{outcome}: {case.get('name')}: {(found.get('message') or '')[:100]}")
absent = out / "not-run"
not_run = absent.read_text().splitlines() if absent.exists() else []
named = {line.partition(":")[0] for line in not_run}
for log in sorted(out.glob("*.log")):
    if not log.with_suffix(".done").exists() and log.stem not in {"unproven", *named}:
        lines.append(f"step {log.stem}: failed, see {log}")
lines += [f"step {line}" for line in not_run]
print("UNPROVEN on this machine:" if lines else "nothing on the list is unproven")
for line in lines:
    print(f"  - {line}")
PY
}

# Notes a step that is not run, and why.
not_run() {
  forget "$1"
  echo "== $1: NOT RUN, $2"
  echo "$1: not run, $2" >>"$OUT/not-run"
}

# A bench that came to its end; where rows differ it fails, and would again.
whole() { [ -e "$OUT/$1.json" ] && ! grep -q '^ "cut": true' "$OUT/$1.json"; }

# Runs one step under its time limit and that of all, keeps its output, stamps it when it succeeded.
run_step() {
  local step=$1 status=0 most=$((TOTAL - SECONDS))
  [ -e "$OUT/$step.done" ] && { echo "== $step: done before"; return 0; }
  if whole "$step"; then echo "== $step: done before, with rows that are not equal"; return 1; fi
  local takes=${TAKES[$step]:-120}
  [ "$takes" -le "$LIMIT" ] || takes=$LIMIT
  [ "$most" -ge "$takes" ] || { not_run "$step" "$most s are left and it takes about $takes; call again"; return 1; }
  forget "$step"
  echo "== $step"
  echo "about $takes s; $most s are left"
  [ "$most" -le "$LIMIT" ] || most=$LIMIT
  timeout -k 10 "$most" bash "$HERE/on_gpu.sh" "$OUT" "--inside=$step" 2>&1 | tee "$OUT/$step.log" || status=$?
  case $status in
    0) touch "$OUT/$step.done" ;;
    "$PART") echo "== $step: done IN PART" ;;
    *) echo "== $step FAILED (status $status)" ;;
  esac
  if [ -n "${KEEP:-}" ]; then keep; fi
  return "$status"
}

# What is left of all steps so far, should the machine be gone before the end.
keep() {
  tar -czf "$KEEP.new" -C "$OUT" --exclude=./wheels --exclude=./cmake --exclude=./tree . && mv "$KEEP.new" "$KEEP"
}

# The benches of a list that there are, in its order.
run_benches() {
  local name failed=0
  for name in $1; do
    grep -qx "$name" "$OUT/benches" 2>/dev/null || continue
    if [[ " $NEED_CUDA " = *" $name "* ]] && ! has_cuda_code; then
      not_run "bench-$name" "it needs the CUDA kernels"
      failed=1
    else
      run_step "bench-$name" || failed=1
    fi
  done
  return "$failed"
}

inside() {
  case $1 in
    bench-*) step_bench "${1#bench-}" ;;
    memcheck | racecheck) step_sanitizer "$1" ;;
    env | wheels | build | compile | test | families | benches | roofline | unproven) "step_$1" ;;
    *) echo "unknown step $1; steps: env wheels build test benches bench-<name> memcheck racecheck families compile roofline unproven"; exit 2 ;;
  esac
}

case ${2:-all} in
  --inside=*) inside "${2#--inside=}" ;;
  all)
    failed=0
    rm -f "$OUT/not-run" "$OUT"/{wheels,benches,roofline,unproven}.done
    run_step env || exit 1
    run_step wheels || failed=1
    run_step build || failed=1
    if [ -d "$OUT/tree" ]; then export PYTHONPATH="$OUT/tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1; fi
    for step in test benches; do run_step "$step" || failed=1; done
    run_benches "$FIRST" || failed=1
    run_step memcheck || failed=1
    run_benches "$OTHER $(grep -vxF "$(tr ' ' '\n' <<<"$FIRST $OTHER $ON_CPU")" "$OUT/benches" 2>/dev/null || true)" || failed=1
    for step in families racecheck compile; do run_step "$step" || failed=1; done
    TOTAL=$((TOTAL + 60)) # these two always run
    run_step roofline || failed=1
    run_step unproven || failed=1
    exit "$failed"
    ;;
  *) run_step "$2" ;;
esac

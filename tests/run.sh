#!/usr/bin/env bash
# Installs the packages, builds, and runs every test.
#   tests/run.sh                        preset cpu-release
#   tests/run.sh cpu-debug cpu-tsan     other presets, one after the other
#   tests/run.sh --without e2e PRESET   without the tests of a label (e2e: nor the command itself)
# THINWIRE_MODELS=DIR: a folder of larger models; tests that need it are skipped (and counted)
# without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launcher/packages.sh

without=none
if [ "${1:-}" = --without ]; then
  without=$2
  shift 2
fi
if [ $# -eq 0 ]; then set -- cpu-release; fi
if [ -n "${THINWIRE_MODELS:-}" ]; then
  THINWIRE_MODELS=$(realpath "$THINWIRE_MODELS") || exit 1
  export THINWIRE_MODELS
fi

echo "== packages"
install_packages "${thinwire_packages[@]}" "${thinwire_test_packages[@]}"
if [ "$without" != e2e ]; then install_openai build/openai; fi

for preset in "$@"; do
  echo "== $preset: build"
  cmake --preset "$preset" --log-level=WARNING \
    -DTHINWIRE_LAUNCHER="$([ "$without" = e2e ] && echo OFF || echo ON)"
  cmake --build --preset "$preset"
  echo "== $preset: test"
  log=build/$preset/tests.log
  exclude=$without
  # GPU tests need a GPU.
  if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    exclude="$exclude|gpu"
  fi
  set +e
  ctest --preset "$preset" --parallel "$(nproc)" --label-exclude "$exclude" | tee "$log"
  status=${PIPESTATUS[0]}
  set -e
  skipped=$(grep -c '\*\*\*Skipped' "$log" || true)
  echo "== $preset: $skipped test programs skipped cases (see above)"
  if [ "$status" -ne 0 ]; then
    echo "tests/run.sh: preset $preset failed" >&2
    exit "$status"
  fi
done

#!/usr/bin/env bash
# From a bare Debian 12 or Ubuntu 24.04 to a model that answers on two ranks: installs the packages,
# builds, and runs a small bundled model under mpirun with tensor parallelism.
#   launcher/demo.sh [PROMPT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launcher/packages.sh
trap 'echo "demo failed in line $LINENO: see the lines above" >&2' ERR

prompt=${1:-"The history of the city begins with"}
sampling=(--max-tokens 48 --temperature 0.7 --top-p 0.9 --seed 7)
model=tests/models/opt-nano
report=$(mktemp --suffix .json)

echo "== packages"
install_packages "${thinwire_packages[@]}"

echo "== build (preset cpu-release)"
cmake --preset cpu-release -DTHINWIRE_TESTS=OFF -DTHINWIRE_BENCHMARKS=OFF \
  -B build/demo --log-level=WARNING
cmake --build build/demo --target thinwire
thinwire=build/demo/launcher/thinwire

# mpirun refuses to run as root unless told that this is meant; containers are root.
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

echo "== what is in $model"
"$thinwire" inspect "$model"

echo "== one process"
"$thinwire" run --model "$model" --prompt "$prompt" "${sampling[@]}"

echo "== two ranks, every layer cut in two: the same text"
mpirun --oversubscribe -np 2 "$thinwire" run --model "$model" --tp 2 --prompt "$prompt" \
  "${sampling[@]}" --report "$report"

echo "== wire report"
sed -n '/"wire"/,/^  }/p' "$report"
rm -f "$report"

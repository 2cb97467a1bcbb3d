#!/usr/bin/env bash
# From a bare Debian 12 or Ubuntu 24.04 to a quantised model that answers on two ranks: installs the
# packages, builds, makes 4-bit weights and a 4-bit KV cache of a small bundled model, and runs it
# under mpirun with tensor parallelism.
#   launcher/demo.sh [PROMPT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launcher/packages.sh
trap 'echo "demo failed in line $LINENO: see the lines above" >&2' ERR

prompt=${1:-"The history of the city begins with"}
sampling=(--max-tokens 48 --temperature 0.7 --top-p 0.9 --seed 7)
model=tests/models/llama-nano
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quantised=$work/llama-nano-w4a4kv
report=$work/report.json
coded_report=$work/coded_report.json
page=build/demo/wire.html

echo "== packages"
install_packages "${thinwire_packages[@]}"

# With a GPU and a toolkit the program is built for both; it takes GPUs where every rank has one.
preset=cpu-release
if command -v nvcc >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
  preset=cuda-release
fi
echo "== build (preset $preset)"
cmake --preset "$preset" -DTHINWIRE_TESTS=OFF -DTHINWIRE_BENCHMARKS=OFF -DTHINWIRE_SERVER=OFF \
  -B build/demo --log-level=WARNING
cmake --build build/demo --target thinwire
thinwire=build/demo/launcher/thinwire

echo "== this host"
"$thinwire" check

# mpirun refuses to run as root unless told that this is meant; containers are root.
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

echo "== the original"
"$thinwire" run --model "$model" --prompt "$prompt" "${sampling[@]}"

echo "== 4-bit weights and KV cache, calibrated on text that the model makes up"
"$thinwire" quantize --model "$model" --out "$quantised" --scheme w4a4kv --calib self \
  --nsamples 64 --seqlen 256 --tp 2

echo "== what is in it"
"$thinwire" inspect "$quantised"

echo "== one process"
"$thinwire" run --model "$quantised" --prompt "$prompt" "${sampling[@]}"

echo "== two ranks, every layer cut in two: the same text"
mpirun --oversubscribe -np 2 "$thinwire" run --model "$quantised" --tp 2 --prompt "$prompt" \
  "${sampling[@]}" --report "$report"

echo "== the same with codes of 5 bits between the ranks: a third of the bytes"
mpirun --oversubscribe -np 2 "$thinwire" run --model "$quantised" --tp 2 --wire one-shot-q5 \
  --prompt "$prompt" "${sampling[@]}" --report "$coded_report"

echo "== wire reports, and a page with pictures"
sed -n '/"wire": {/,/^  }/p' "$report" "$coded_report"
"$thinwire" report "$report" "$coded_report" -o "$page"
echo "$PWD/$page"

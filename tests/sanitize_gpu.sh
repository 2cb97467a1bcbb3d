#!/usr/bin/env bash
# Runs test programs of GPU kernels under compute-sanitizer, and prints a line for each run. Only
# kernels of this repository are looked at, not those of the libraries that tests compare with (NCCL
# 2.28.3's sums read 4 bytes of a tensor of 2).
#   tests/sanitize_gpu.sh memcheck PROGRAM[:RANKS]...    accesses out of bounds or misaligned
#   tests/sanitize_gpu.sh racecheck PROGRAM[:RANKS]...   unordered accesses of shared memory; slow
#   e.g. tests/sanitize_gpu.sh memcheck build/cuda-release/kernels/*/*_cuda_test \
#          build/cuda-release/parallel/wire/peer_codes_test:2
# With RANKS a program runs under mpirun. BY_CASE=1 runs each case of a program by itself, JOBS
# (default 1) runs at a time. SECONDS_EACH (default 600) bounds a run; one that it cuts short counts
# as failed. GTEST_FILTER chooses cases. Exit code 1 if any run was not clean.
set -uo pipefail
if [ $# -lt 2 ] || { [ "$1" != memcheck ] && [ "$1" != racecheck ]; }; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
tool=$1
shift
seconds=${SECONDS_EACH:-600}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# The names of a program's cases that GTEST_FILTER chooses.
cases_of() {
  "$1" --gtest_list_tests 2>/dev/null |
    awk '/^[^ ].*\.( .*)?$/ { suite = $1 } /^  [^ ]/ { print suite $1 }'
}

# run PROGRAM RANKS CASE LOG: CASE may be empty, for all that GTEST_FILTER chooses.
run() {
  local program=$1 ranks=$2 one=$3 log=$4 started=$SECONDS code result
  # Libraries ask for things that may fail, and go on: their API errors are no findings.
  local command=(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 99
    --kernel-name kns=thinwire "$program" ${one:+"--gtest_filter=$one"})
  if [ -n "$ranks" ]; then
    command=(mpirun --oversubscribe --bind-to none -np "$ranks" "${command[@]}")
  fi
  timeout -k 5 "$seconds" "${command[@]}" >"$log" 2>&1
  code=$?
  case $code in
    0) result=clean ;;
    77) result="skipped: no GPU" ;;
    99) result="found: $(grep -E '(ERROR|RACECHECK) SUMMARY: [1-9]' "$log" | tail -1)" ;;
    124 | 137) result="cut short after $seconds s" ;;
    *) result="failed with exit code $code" ;;
  esac
  printf '%-10s %-28s %4d s  %3d cases  %s%s\n' "$tool" "$(basename "$program")${ranks:+:$ranks}" \
    $((SECONDS - started)) "$(grep -c '\[       OK' "$log")" "$result" "${one:+  $one}"
  if [ $code -ne 0 ] && [ $code -ne 77 ]; then
    touch "$logs/worst"
    grep -E '=========' "$log" | head -40
    grep -E '\[  FAILED|Failure' "$log" | head -5
  fi
}

number=0
for argument in "$@"; do
  program=${argument%:*}
  ranks=${argument#"$program"}
  cases=('')
  [ "${BY_CASE:-0}" = 1 ] && mapfile -t cases < <(cases_of "$program")
  for one in "${cases[@]:-}"; do
    while [ "$(jobs -pr | wc -l)" -ge "${JOBS:-1}" ]; do wait -n; done
    number=$((number + 1))
    run "$program" "${ranks#:}" "$one" "$logs/$number" &
  done
done
wait
[ ! -e "$logs/worst" ]

#!/usr/bin/env bash
# Runs test programs of GPU kernels under compute-sanitizer, and prints a line for each run.
#   tests/sanitize_gpu.sh memcheck PROGRAM...    accesses out of bounds or misaligned
#   tests/sanitize_gpu.sh racecheck PROGRAM...   unordered accesses of shared memory; slow
#   e.g. tests/sanitize_gpu.sh memcheck build/cuda-release/kernels/*/*_cuda_test
# SECONDS_EACH (default 600) bounds a run; one that it cuts short counts as failed. GTEST_FILTER
# chooses cases. Exit code 1 if any run was not clean.
set -uo pipefail
if [ $# -lt 2 ] || { [ "$1" != memcheck ] && [ "$1" != racecheck ]; }; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
tool=$1
shift
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
worst=0
for program in "$@"; do
  name=$(basename "$program")
  started=$SECONDS
  # Libraries ask for things that may fail, and go on: their API errors are no findings.
  timeout "${SECONDS_EACH:-600}" compute-sanitizer --tool "$tool" --report-api-errors no \
    --error-exitcode 99 "$program" >"$logs/$name" 2>&1
  code=$?
  case $code in
    0) result=clean ;;
    77) result="skipped: no GPU" ;;
    99) result="found: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/$name" | tail -1)" ;;
    124) result="cut short after ${SECONDS_EACH:-600} s" ;;
    *) result="failed with exit code $code" ;;
  esac
  printf '%-10s %-28s %4d s  %3d cases  %s\n' "$tool" "$name" $((SECONDS - started)) \
    "$(grep -c '^\[       OK' "$logs/$name")" "$result"
  if [ $code -ne 0 ] && [ $code -ne 77 ]; then
    worst=1
    grep -E '^=========' "$logs/$name" | head -40
    grep -E '^\[  FAILED|Failure' "$logs/$name" | head -5
  fi
done
exit $worst

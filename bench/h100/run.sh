#!/usr/bin/env bash
# Everything that the project claims of one card, in one results file: the kernels' tests, plain and under compute-sanitizer,
# their benchmarks beside ONNX Runtime's and PyTorch's, the tests through Node, a Jamba block at full size.
#   bench/h100/run.sh BUILD FOLDER RESULT.json [PART …]     parts: tests sanitize kernels node block
# BUILD holds the kernels' programs (cmake -S kernels), FOLDER keeps what parts leave, so that they can run in several calls;
# in /dev/shm it has room for the block's 14 GB. LAYERWEAVE_ORT_DIR names the folder of ONNX Runtime and its CUDA provider,
# COMMIT what all was built from. A part that takes longer than SECONDS_A_PART is ended. Ends with 1 if a test failed.
set -euo pipefail
build=${1:?usage: run.sh BUILD FOLDER RESULT.json [PART …]} folder=${2:?} result=${3:?}
shift 3
parts=${*:-tests sanitize kernels node block}
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
ort=${LAYERWEAVE_ORT_DIR:?the folder of libonnxruntime.so.1 and its CUDA provider}
export COMMIT=${COMMIT:-$(git -C "$here" rev-parse HEAD)}
mkdir -p "$folder"
failed=0
limit() { timeout "${SECONDS_A_PART:-600}" "$@"; }
for part in $parts; do
  case $part in
    tests) JOBS=4 limit "$root/kernels/test/run-all.sh" "$build" "$ort" | tee "$folder/tests.txt" || failed=1 ;;
    sanitize) JOBS=4 SANITIZE_ONLY=1 SANITIZE="memcheck racecheck" limit "$root/kernels/test/run-all.sh" "$build" | tee "$folder/sanitize.txt" || failed=1 ;;
    kernels)
      limit "$root/bench/kernels/run-all.sh" "$build" "$folder" card "$ort" >"$folder/kernels.log"
      limit "$build/decode_chain_bench" | tee "$folder/chain.txt" || failed=1
      ;;
    node)
      node "$root/test/gpu/compile-models.mjs"
      limit node --test --test-concurrency=1 --test-reporter="$root/test/gpu/json-reporter.mjs" "$root/build/gpu-tests/test/gpu/" >"$folder/node.json" || failed=1
      ;;
    block) limit node "$root/bench/jamba-block/run.mjs" "$folder/jamba-block" "$folder/block.json" "$COMMIT" ;;
    *) echo "no part $part" >&2 && exit 2 ;;
  esac
done
node "$here/collect.mjs" "$folder" "$result"
exit $failed

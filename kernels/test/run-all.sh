#!/usr/bin/env bash
# Runs every test of the CUDA kernels, and of the ops in ONNX Runtime where its folder is given, without Node.
#   run-all.sh BUILD [folder of libonnxruntime.so.1 and its CUDA provider]
# With SANITIZE="memcheck racecheck" each test then runs under these tools of compute-sanitizer, on its smaller shapes.
# SANITIZE_ONLY=1 leaves out the plain runs, ONLY="moe_test sample_test" all tests but these. JOBS=4 runs as many side by side.
# Ends with 1 if anything failed, with 77 if nothing could run.
set -u
build=${1:?usage: run-all.sh BUILD [ORT_DIR]}
ort=${2:-}
tests=${ONLY:-attention_test causal_conv_test linear_packed_test mamba_inner_test moe_test repeat_test residual_norm_test sample_test select_tokens_test selective_scan_test}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

check() {
  local name=$1 start=$SECONDS status=0 result
  local log="$logs/${name// /}"
  shift
  "$@" >"$log" 2>&1 || status=$?
  case $status in
    0) result=passed ;;
    77) result=skipped ;;
    *) result="FAILED ($status)" ;;
  esac
  echo "$result" >"$log.result"
  printf '%-32s %-12s %4d s  %s\n' "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$log")"
  [[ $result != FAILED* ]] || head -n 40 "$log"
}

# Starts a check where no more than JOBS are under way.
start() {
  while (($(jobs -rp | wc -l) >= ${JOBS:-1})); do wait -n; done
  check "$@" &
}

if [[ -z ${SANITIZE_ONLY:-} ]]; then for test in $tests; do start "$test" "$build/$test"; done; fi
[[ -z $ort ]] || start ort_cuda_ops_test "$build/ort_cuda_ops_test" "$ort" "$build/liblayerweave_ops_cuda.so"
for tool in ${SANITIZE:-}; do
  for test in $tests; do start "$test, $tool" compute-sanitizer --tool "$tool" --error-exitcode 99 "$build/$test" --quick; done
done
wait
if grep -qs FAILED "$logs"/*.result; then exit 1; elif ! grep -qs passed "$logs"/*.result; then exit 77; fi

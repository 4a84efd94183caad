#!/usr/bin/env bash
# Runs every benchmark of the CUDA kernels on this machine's card, in one go, and writes kernels-, moe- and attention-SUFFIX.json.
#   run-all.sh BUILD RESULTS SUFFIX [folder of libonnxruntime.so.1 and its CUDA provider]
# The experts of ONNX Runtime are timed beside ours where its folder is given, PyTorch's products by the python3 on the path.
# COMMIT names what the programs were built from; without it, it is this checkout's.
set -eu
build=${1:?usage: run-all.sh BUILD RESULTS SUFFIX [ORT_DIR]} results=${2:?} suffix=${3:?} ort=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
commit=${COMMIT:-$(git -C "$here" rev-parse HEAD)}
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
bench() {
  local program=$1 json=$2
  shift 2
  "$build/$program" "$@" --commit "$commit" --date "$(date -u +%F)" --driver "$driver" --json "$json"
}

qmoe=$(mktemp)
trap 'rm -f "$qmoe"' EXIT
if [[ -n $ort ]]; then bench qmoe_bench "$qmoe" "$ort"; fi
bench moe_bench "$results/moe-$suffix.json"
python3 "$here/moe_peers.py" "$results/moe-$suffix.json" ${ort:+"$qmoe"}
bench attention_bench "$results/attention-$suffix.json"
bench kernels_bench "$results/kernels-$suffix.json"

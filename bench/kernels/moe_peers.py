"""Adds to a results file of moe_bench what PyTorch and ONNX Runtime reach on this card.

    moe_peers.py RESULTS.json [RESULTS of qmoe_bench]

PyTorch: a dense bfloat16 product of 8192 x 8192 x 8192, and the grouped product
torch._grouped_mm with bfloat16 weights, 16 experts, 4096 -> 28672 and 14336 -> 4096,
for the rows of 1, 16 and 8192 tokens with two experts each. Medians of 15; few rows
as graphs of eight batches.
"""

import json
import statistics
import sys

import torch

EXPERTS, TOP_K, BATCHES = 16, 2, 8


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def median_ms(work):
    samples = []
    for i in range(18):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if i >= 3:
            samples.append(start.elapsed_time(stop))
    return statistics.median(samples)


def captured(work):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def routing(tokens):
    """Where each expert's rows end, and how many experts have any."""
    chosen = torch.randn(tokens, EXPERTS).topk(TOP_K).indices
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS)
    return counts.cumsum(0).to(device="cuda", dtype=torch.int32), int((counts > 0).sum())


def report(peer):
    print(f"{peer['name']}: {peer['median_ms']:.4f} ms, {peer['tflops']:.0f} TFLOP/s", flush=True)
    return peer


def grouped(copy, tokens, columns, outputs):
    rows = tokens * TOP_K
    batches = [routing(tokens) for _ in range(BATCHES if tokens <= 16 else 1)]
    x, w = random(rows, columns), random(EXPERTS, outputs, columns).transpose(1, 2)

    def work():
        for offsets, _ in batches:
            torch._grouped_mm(x, w, offs=offsets)

    ms = median_ms(captured(work).replay if tokens <= 16 else work) / len(batches)
    distinct = statistics.mean(experts for _, experts in batches)
    limit = distinct * columns * outputs * 2 / copy * 1e3
    return report({
        "name": f"torch._grouped_mm bfloat16 E{EXPERTS} {rows} rows {columns}->{outputs}",
        "tokens": tokens,
        "distinct_experts": distinct,
        "median_ms": round(ms, 5),
        "copy_limit_ms": round(limit, 5),
        "fraction_of_copy": round(limit / ms, 3),
        "tflops": round(2 * rows * columns * outputs / ms * 1e-9, 1),
    })


def text_of(results):
    """JSON with a line for each result."""

    def text(value):
        return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in value) + "\n  ]" if isinstance(value, list) else json.dumps(value)

    return "{\n" + ",\n".join(f'  "{key}": {text(value)}' for key, value in results.items()) + "\n}\n"


def main(path, qmoe=None):
    with open(path) as file:
        results = json.load(file)
    torch.manual_seed(0)
    a, b = random(8192, 8192), random(8192, 8192)
    ms = median_ms(lambda: a @ b)
    peers = [report({"name": "torch.matmul bfloat16 8192^3", "median_ms": round(ms, 5), "tflops": round(2 * 8192**3 / ms * 1e-9, 1)})]
    for tokens in (1, 16, 8192):
        for columns, outputs in ((4096, 28672), (14336, 4096)):
            peers.append(grouped(results["copy_bytes_per_s"], tokens, columns, outputs))
            torch.cuda.empty_cache()
    results["torch"] = torch.__version__
    results["peers"] = peers
    if qmoe is not None:
        with open(qmoe) as file:
            theirs = json.load(file)
        results["onnxruntime"] = theirs["onnxruntime"]
        results["qmoe"] = theirs["results"]
    with open(path, "w") as file:
        file.write(text_of(results))


main(*sys.argv[1:])

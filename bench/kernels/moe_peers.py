"""Adds PyTorch's rates on this card to a results file of moe_bench.

    moe_peers.py RESULTS.json

A dense bfloat16 product of 8192 x 8192 x 8192, and the grouped product
torch._grouped_mm with bfloat16 weights over the shapes of the prefill: 16 experts
and 16,384 rows, 4096 -> 28672 and 14336 -> 4096. Medians of 15, events.
"""

import json
import statistics
import sys

import torch


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


def rate(name, flops, work):
    ms = median_ms(work)
    return {"name": name, "median_ms": round(ms, 5), "tflops": round(flops / ms * 1e-9, 1)}


def main(path):
    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    a, b = random(8192, 8192), random(8192, 8192)
    peers = [rate("torch.matmul bfloat16 8192^3", 2 * 8192**3, lambda: a @ b)]
    del a, b
    experts, rows = 16, 16384
    torch.manual_seed(0)
    counts = torch.bincount(torch.randint(experts, (rows,)), minlength=experts)
    offsets = counts.cumsum(0).to(device="cuda", dtype=torch.int32)
    for columns, outputs in ((4096, 28672), (14336, 4096)):
        x, w = random(rows, columns), random(experts, outputs, columns).transpose(1, 2)
        name = f"torch._grouped_mm bfloat16 E16 {rows} rows {columns}->{outputs}"
        peers.append(rate(name, 2 * rows * columns * outputs, lambda: torch._grouped_mm(x, w, offs=offsets)))
        del x, w
        torch.cuda.empty_cache()
    with open(path) as file:
        results = json.load(file)
    results["torch"] = torch.__version__
    results["peers"] = peers
    with open(path, "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    for peer in peers:
        print(f"{peer['name']}: {peer['median_ms']:.4f} ms, {peer['tflops']:.0f} TFLOP/s")


main(sys.argv[1])

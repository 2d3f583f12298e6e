"""A dense step of PyTorch on the card, at the shapes of `benches/step.rs`, and cuBLAS on the encoder's product; then the ratios.

    dense_torch.py [--json FILE] [--ours FILE …] [--small] [--seconds N] [--eager]

    pre = x W_enc + b_enc    a = ReLU(pre)    x^ = a W_dec + b_dec
    loss = mean over tokens of ||x - x^||^2 + lambda * sum_f a_f ||W_dec[f]||

bf16 autocast over float32 weights, torch.compile, clipping by the global norm, fused Adam: what a careful user of PyTorch writes.
Where there is nothing to compile with, it says so and goes on without.
Where a batch does not fit, gradients are summed over micro-batches, the largest that do. Times are the median of steps that are
waited for, after a warm-up that compiles. The encoder's product is torch.matmul in bf16, over slices of the features whose result
fits, each with a cache of other data.

--ours takes files of `--json` of the benches operations and step; their lines are joined with these by shape into one table.
--small runs a tiny shape, on the processor where there is no card: times then mean nothing. --seconds stops before a shape when
so many have gone by. Without torch or without CUDA it says so and exits with 3.
"""

import argparse
import json
import sys
import time

# width, features, batches: benches/step.rs has the same.
SHAPES = [(768, 131_072, [4096, 8192]), (2048, 1_048_576, [4096, 8192])]
SMALL = [(72, 300, [40, 64])]
LAMBDA = 1.0
STEPS = 7
# Values of one slice of the encoder's product: 2 GiB in bf16.
SLICE = 1 << 30
FLUSH_BYTES = 256 << 20
# The ratio that the project aims at, at the larger shape.
GOAL = 2.5
MISSING = 3


def forward(x, w_enc, b_enc, w_dec, b_dec):
    """The loss summed over the rows of x."""
    acts = (x @ w_enc + b_enc).relu()
    error = (acts @ w_dec + b_dec).float() - x.float()
    l1 = acts.sum(dim=0, dtype=torch.float32) @ w_dec.norm(dim=1)
    return error.square().sum() + LAMBDA * l1


class Clock:
    """ms on the card, or on the processor."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def time(self, operation):
        if not self.cuda:
            began = time.perf_counter()
            operation()
            return 1e3 * (time.perf_counter() - began)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        operation()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)


class Dense:
    """A dictionary of PyTorch with its optimizer."""

    def __init__(self, device, width, features, eager):
        directions = torch.randn(features, width, device=device)
        directions *= 0.1 / directions.norm(dim=1, keepdim=True)
        self.weights = [
            directions.T.contiguous().requires_grad_(),
            torch.full((features,), -0.1, device=device, requires_grad=True),
            directions.requires_grad_(),
            torch.zeros(width, device=device, requires_grad=True),
        ]
        self.optimizer = torch.optim.Adam(self.weights, lr=1e-4, fused=True)
        self.device = device
        self.compiled = not eager
        self.forward = forward if eager else torch.compile(forward, dynamic=False)

    def step(self, x, micro):
        self.optimizer.zero_grad()
        for part in x.split(micro):
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.forward(part, *self.weights) / len(x)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()


def step(dense, clock, batch, smallest):
    """Median ms of a step and the micro-batch, the largest whose activations fit."""
    x = torch.randn(batch, len(dense.weights[3]), device=dense.device).bfloat16()
    micro = batch
    while True:
        try:
            for _ in range(2):
                dense.step(x, micro)
            times = sorted(clock.time(lambda: dense.step(x, micro)) for _ in range(STEPS))
            return times[len(times) // 2], micro
        except torch.OutOfMemoryError:
            if micro // 2 < smallest:
                raise
            micro //= 2
        # Outside of the handler, whose exception holds on to tensors.
        for weight in dense.weights:
            weight.grad = None
        torch.cuda.empty_cache()


def product(device, clock, width, features, batch):
    """Median ms of x W_enc in bf16: the sum over slices of the features."""
    x = torch.randn(batch, width, device=device).bfloat16()
    per_slice = max(1, min(features, SLICE // batch))
    w = torch.randn(width, per_slice, device=device).bfloat16()
    out = torch.empty(batch, per_slice, device=device, dtype=torch.bfloat16)
    flush = torch.empty(FLUSH_BYTES if clock.cuda else 1, dtype=torch.uint8, device=device)
    times = []
    for _ in range(STEPS + 2):
        flush.zero_()
        times.append(clock.time(lambda: torch.matmul(x, w, out=out)))
    times = sorted(times[2:])
    return times[len(times) // 2] * features / per_slice


def measure(args, device):
    """A record for each product and step; those that fail say why."""
    clock, began = Clock(device), time.monotonic()
    for width, features, batches in SMALL if args.small else SHAPES:
        dense = None
        for batch in batches:
            if args.seconds and time.monotonic() - began > args.seconds:
                yield {"what": "left out", "width": width, "features": features, "batch": batch, "reason": "no time left"}
                continue
            shape = {"width": width, "features": features, "batch": batch}
            ms = product(device, clock, width, features, batch)
            yield {"what": "cublas", **shape, "ms": ms, "tflops": 2e-9 * batch * width * features / ms}
            try:
                dense = dense or Dense(device, width, features, args.eager)
                try:
                    ms, micro = step(dense, clock, batch, smallest=64)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # What it meets without a compiler has many types.
                    if not dense.compiled:
                        raise
                    yield {"what": "not compiled", **shape, "reason": str(error)[:500]}
                    dense.forward, dense.compiled = forward, False
                    ms, micro = step(dense, clock, batch, smallest=64)
            except torch.OutOfMemoryError as error:
                yield {"what": "failed", **shape, "reason": str(error)[:500]}
                continue
            rate = 1e3 * batch / ms
            yield {"what": "dense", **shape, "ms": ms, "micro_batch": micro, "compiled": dense.compiled, "tokens_per_s": rate}
        # The next shape needs the memory.
        del dense
        if device.type == "cuda":
            torch.cuda.empty_cache()


def read(paths):
    for path in paths:
        try:
            with open(path) as lines:
                yield from map(json.loads, lines)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)


def table(ours, theirs):
    """One line a shape: ours beside dense PyTorch, the encoder beside cuBLAS."""
    key = lambda line: (line["width"], line["features"], line["batch"])
    dense = {key(line): line for line in theirs if line["what"] == "dense"}
    cublas = {key(line): line for line in theirs if line["what"] == "cublas"}
    print(f"{'D x F, B':>24} {'L0':>6} {'adam':>8} {'weights':>8} {'moments':>8} {'ours ms':>10} {'torch ms':>10} {'x torch':>8}")
    for line in ours:
        if line["what"] == "step" and key(line) in dense:
            width, features, batch = key(line)
            ms, other = line["step_us"] / 1e3, dense[key(line)]["ms"]
            print(
                f"{f'{width} x {features}, {batch}':>24} {line['l0']:6.1f} {line['adam']:>8} {line['precision']:>8} "
                f"{line['moments']:>8} {ms:10.3f} {other:10.3f} {other / ms:8.2f}"
            )
    for line in ours:
        if line["what"] == "operation" and line["operation"] == "encode" and key(line) in cublas:
            width, features, batch = key(line)
            ms, other = line["best_us"] / 1e3, cublas[key(line)]["ms"]
            print(f"encode, {width} x {features}, {batch}, L0 {line['l0']:.1f}: {ms:.3f} ms, {other / ms:.2f} x cuBLAS ({other:.3f} ms)")
    width, features, _ = SHAPES[-1]
    steps = [line for line in ours if line["what"] == "step" and key(line)[:2] == (width, features) and key(line) in dense]
    # What a recipe does by default.
    steps = [line for line in steps if (line["precision"], line["moments"], line["adam"]) == ("mixed", "f32", "dense")]
    if steps:
        least = min(dense[key(line)]["ms"] * 1e3 / line["step_us"] for line in steps)
        verdict = "reached" if least >= GOAL else "missed"
        print(f"goal, at least {GOAL} x dense PyTorch at {features} x {width}: {verdict}, {least:.2f} x at the least of L0 and B")
    else:
        print(f"goal, at least {GOAL} x dense PyTorch at {features} x {width}: not measured")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--ours", nargs="*", default=[])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C compiler")
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.small:
        print("nothing measured: this PyTorch sees no CUDA device (--small runs on the processor)", file=sys.stderr)
        return MISSING
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else "processor"
    records = [{"what": "torch", "version": torch.__version__, "cuda": torch.version.cuda, "device": name}]
    print(json.dumps(records[0]), flush=True)
    for record in measure(args, device):
        print(json.dumps(record), flush=True)
        records.append(record)
    if args.json:
        with open(args.json, "w") as log:
            log.writelines(json.dumps(record) + "\n" for record in records)
    if args.ours:
        table(list(read(args.ours)), records)
    return 0


try:
    import torch
except ImportError as missing:
    print(f"nothing measured: no PyTorch: {missing}", file=sys.stderr)
    sys.exit(MISSING)

if __name__ == "__main__":
    sys.exit(main())

"""A dense step of PyTorch on the GPU, at the shapes of `benches/step.rs`, each with its ratio to ours.

    dense_torch.py [--json FILE] [--ours FILE …] [--small] [--eager]

    pre = x W_enc + b_enc    a = ReLU(pre)    x^ = a W_dec + b_dec
    loss = mean over tokens of ||x - x^||^2 + lambda * sum_f a_f ||W_dec[f]||

bf16 autocast over float32 weights, torch.compile, clipping by the global norm, fused Adam: what a careful user of PyTorch writes.
Where there is nothing to compile with, it says so and goes on without.
Where a batch does not fit, gradients are summed over micro-batches, the largest that do. Times are the median of steps that are
waited for, after a warm-up that compiles. What cuBLAS makes of the encoder's GEMM is measured by gemm.py.

A line of JSON each, written as soon as it is known, to the file of --json too. --ours takes files of `--json` of the bench step: behind
a shape come the ratios to their lines for it. --small runs a tiny shape, on the processor where there is no GPU: times then mean
nothing. Without torch or without CUDA it says so and exits with 3.
"""

import argparse
import json
import sys

# width, features, batches: benches/step.rs has the same.
SHAPES = [(768, 131_072, [8192, 4096]), (2048, 1_048_576, [8192, 4096])]
SMALL = [(72, 136, [64, 40])]
LAMBDA = 1.0
STEPS = 7
# The ratio that the project aims at, at the larger shape.
GOAL = 2.5
MISSING = 3


def forward(x, w_enc, b_enc, w_dec, b_dec):
    """The loss summed over the rows of x."""
    acts = (x @ w_enc + b_enc).relu()
    error = (acts @ w_dec + b_dec).float() - x.float()
    l1 = acts.sum(dim=0, dtype=torch.float32) @ w_dec.norm(dim=1)
    return error.square().sum() + LAMBDA * l1


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


def measure(args, device):
    """A record for each step; those that fail say why."""
    clock = Clock(device)
    for width, features, batches in SMALL if args.small else SHAPES:
        dense = None
        for batch in batches:
            shape = {"width": width, "features": features, "batch": batch}
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
    """Lines of JSON; the last one of a part that was cut off may end anywhere."""
    for path in paths:
        try:
            with open(path) as lines:
                for line in lines:
                    try:
                        yield json.loads(line)
                    except ValueError:
                        print(f"{path}: a line that is not whole", file=sys.stderr)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)


def ratios(ours, dense):
    """A line for each of our steps at the shape of one of PyTorch's, and the goal where it is of that shape."""
    shape = ("width", "features", "batch")
    for line in ours:
        if line["what"] != "step" or any(line[key] != dense[key] for key in shape):
            continue
        ratio = 1e3 * dense["ms"] / line["step_us"]
        of = {key: line[key] for key in (*shape, "l0", "adam", "precision", "moments")}
        record = {"what": "ratio", **of, "ms": line["step_us"] / 1e3, "torch_ms": dense["ms"], "times_torch": ratio}
        if (line["width"], line["features"]) == SHAPES[-1][:2]:
            record["goal"] = f"{'reached' if ratio >= GOAL else 'missed'}: at least {GOAL}"
        yield record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--ours", nargs="*", default=[])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C compiler")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.small:
        print("nothing measured: this PyTorch sees no CUDA device (--small runs on the processor)", file=sys.stderr)
        return MISSING
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else "processor"
    ours = list(read(args.ours))
    log = open(args.json, "w") if args.json else None

    def say(line):
        for file in filter(None, (sys.stdout, log)):
            print(json.dumps(line), file=file, flush=True)

    say({"what": "torch", "version": torch.__version__, "cuda": torch.version.cuda, "device": name})
    for record in measure(args, device):
        say(record)
        if record["what"] == "dense":
            for ratio in ratios(ours, record):
                say(ratio)
    return 0


try:
    import torch

    from clock import Clock
except ImportError as missing:
    print(f"nothing measured: no PyTorch: {missing}", file=sys.stderr)
    sys.exit(MISSING)

if __name__ == "__main__":
    sys.exit(main())

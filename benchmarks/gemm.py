"""What a GPU multiplies and copies at most, by the libraries of PyTorch on random data: the ceiling that kernels are held against.

    gemm.py [--json FILE] [--small]

The encoder's GEMM x W_enc at the shapes of `benches/step.rs`, B = 8192, over the features whose result fits into 2 GiB: in bf16 and
f32 by cuBLAS, in int8 by torch._int_mm, in fp8 by torch._scaled_mm; and a copy of 1 GiB. Random data, since a GPU that multiplies
zeros draws less power and is faster. Best and median of repeats between two events, each behind 256 MiB that empty the cache.

A line of JSON each, written as soon as it is known, to FILE too; a line says what was missing where a GEMM cannot be made. --small
takes tiny shapes, on the processor where there is no GPU: times then mean nothing. Without torch or without CUDA it says so and
exits with 3.
"""

import argparse
import json
import sys

# width, features, batch: benches/step.rs has the same.
SHAPES = [(768, 131_072, 8192), (2048, 1_048_576, 8192)]
SMALL = [(72, 136, 64)]
# Values of a result: 2 GiB in bf16.
SLICE = 1 << 30
FLUSH_BYTES = 256 << 20
COPY_BYTES = 1 << 30
REPEATS = 9
MISSING = 3


def repeats(clock, operation):
    """Sorted ms of repeats behind one that is not counted."""
    operation()
    return sorted(clock.time(operation) for _ in range(REPEATS))


def operands(dtype, device, width, features, batch):
    """x [B, D] and W_enc [D, F], the latter by columns, as it lies in a dictionary's memory and as fp8 asks for it."""
    if dtype == torch.int8:
        values = lambda rows: torch.randint(-127, 128, (rows, width), dtype=torch.int8, device=device)
    else:
        values = lambda rows: torch.randn(rows, width, device=device).to(dtype)
    return values(batch), values(features).T


def gemms(device):
    """dtype, and what multiplies two matrices of it into a result."""
    one = torch.ones((), device=device)
    scaled = lambda x, w: torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    yield "bf16", torch.bfloat16, torch.matmul
    yield "int8", torch.int8, lambda x, w: torch._int_mm(x, w)
    yield "fp8", getattr(torch, "float8_e4m3fn", None), scaled
    yield "fp8 fast", getattr(torch, "float8_e4m3fn", None), lambda x, w: torch._scaled_mm(
        x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    yield "f32", torch.float32, torch.matmul


def measure(device, shapes):
    clock = Clock(device, FLUSH_BYTES)
    for width, features, batch in shapes:
        some = min(features, SLICE // batch)
        for name, dtype, multiply in gemms(device):
            line = {"what": "gemm", "dtype": name, "width": width, "features": features, "batch": batch, "sliced_to": some}
            try:
                # Sides of whole pieces of 16 bytes, which narrow formats ask for.
                x, w = operands(dtype, device, width // 16 * 16, some // 16 * 16, batch)
                times = repeats(clock, lambda: multiply(x, w))
            except Exception as error:  # What a version of PyTorch or a GPU lacks has many types.
                yield {**line, "missing": f"{type(error).__name__}: {error}"[:300]}
                continue
            operations = 2 * batch * w.shape[0] * w.shape[1]
            yield {
                **line,
                "best_ms": times[0],
                "median_ms": times[len(times) // 2],
                "tflops": 1e-9 * operations / times[0],
            }
            del x, w
    source = torch.randint(0, 255, (COPY_BYTES if clock.cuda else 1 << 16,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = repeats(clock, lambda: target.copy_(source))
    yield {"what": "copy", "best_ms": times[0], "gbs": 2e-6 * source.numel() / times[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.small:
        print("nothing measured: this PyTorch sees no CUDA device (--small runs on the processor)")
        return MISSING
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else "processor"
    log = open(args.json, "w") if args.json else None

    def say(line):
        for file in filter(None, (sys.stdout, log)):
            print(json.dumps(line), file=file, flush=True)

    say({"what": "torch", "version": torch.__version__, "cuda": torch.version.cuda, "device": name})
    for line in measure(device, SMALL if args.small else SHAPES):
        say(line)
    return 0


try:
    import torch

    from clock import Clock
except ImportError as missing:
    print(f"nothing measured: no PyTorch: {missing}")
    sys.exit(MISSING)

if __name__ == "__main__":
    sys.exit(main())

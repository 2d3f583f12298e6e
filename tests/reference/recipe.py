"""The reference: the training recipe in plain PyTorch, float32, dense.

    recipe.py --train FILES_OR_FOLDERS --scale S --features F --batch B --lr 3e-4 --l1 5
              [--eval FILES_OR_FOLDERS] [--steps N] [--init WEIGHTS | --seed K] [--threads T]
              [--json LOG] [--save WEIGHTS] [--compile] [--matmul highest|high|medium]

    pre = x W_enc + b_enc    a = ReLU(pre)    x^ = a W_dec + b_dec
    loss = mean over tokens of ||x - x^||^2 + lambda(s) * sum_f a_f ||W_dec[f]||

Rows are taken in file order, multiplied by the scale and used once; the last short batch is used. With S steps in all,
    lambda(s) = l1 * min(1, (s + 1) / w),  w = max(1, round(0.05 S)), halves rounded up
    lr(s)     = lr for s < 0.8 S, else lr * (S - s) / (S - 0.8 S)
Adam has betas 0.9 and 0.999, eps 1e-8; gradients are multiplied by min(1, 1 / (norm + 1e-6)), norm over all parameters.

The log has one JSON object per step {step, loss, mse, l1_norm, l0, grad_norm, step_ms} and a last one {summary}; `loss` is
measured before the update of its step. tokens_per_s counts everything from the first read to the last update, except the
warm-up of the compiler; tokens_per_s_last_half is the same over the steps from S/2 on. For timing use --compile, which
needs a C++ compiler. --matmul medium lets oneDNN do the products: on CPUs without AMX they stay float32.
Weight files hold W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D] in float32, in the scaled space.
"""

import argparse
import json
import math
import os
import sys
import time

# Large CPU tensors on huge pages: without it each one is page-faulted anew. Read by PyTorch at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from safetensors.torch import load_file, save_file

import rows

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
INIT_NORM = 0.1
EVAL_BATCH = 2048


def initial_weights(width, features, seed):
    """Decoder rows are random directions of one norm, the encoder is their transpose, biases are zero."""
    directions = torch.randn(features, width, generator=torch.Generator().manual_seed(seed))
    w_dec = INIT_NORM * directions / directions.norm(dim=1, keepdim=True)
    weights = {"W_enc": w_dec.T.clone(), "b_enc": torch.zeros(features), "W_dec": w_dec, "b_dec": torch.zeros(width)}
    return {name: value.contiguous() for name, value in weights.items()}


def warm_up_steps(steps):
    return max(1, math.floor(0.05 * steps + 0.5))


def l1_at(step, steps, l1):
    return l1 * min(1.0, (step + 1) / warm_up_steps(steps))


def lr_at(step, steps, lr):
    return lr if step < 0.8 * steps else lr * (steps - step) / (steps - 0.8 * steps)


def forward(x, w_enc, b_enc, w_dec, b_dec):
    """Mean squared error, mean L1 and mean L0 of a batch."""
    acts = torch.addmm(b_enc, x, w_enc).relu()
    error = torch.addmm(b_dec, acts, w_dec) - x
    l1 = acts.sum(dim=0) @ w_dec.norm(dim=1)
    l0 = (acts.detach() > 0).float().sum()
    return error.square().sum() / len(x), l1 / len(x), l0 / len(x)


def evaluate(weights, files, scale, l1):
    """Metrics over all rows of the files, sums in float64; explained variance is against the mean over the same rows."""
    count, squares, errors, penalty, active = 0, 0.0, 0.0, 0.0, 0
    total = torch.zeros(weights["b_dec"].shape, dtype=torch.float64)
    fired = torch.zeros(weights["b_enc"].shape, dtype=torch.bool)
    norms = weights["W_dec"].norm(dim=1)
    with torch.no_grad():
        for batch in rows.batches(files, EVAL_BATCH):
            x = batch.float() * scale
            acts = torch.addmm(weights["b_enc"], x, weights["W_enc"]).relu()
            error = torch.addmm(weights["b_dec"], acts, weights["W_dec"]) - x
            count += len(x)
            squares += x.double().square().sum().item()
            errors += error.double().square().sum().item()
            penalty += (acts @ norms).double().sum().item()
            active += int(torch.count_nonzero(acts))
            total += x.double().sum(0)
            fired |= (acts > 0).any(0)
    variance = squares - total.square().sum().item() / count
    return {
        "rows": count,
        "loss": (errors + l1 * penalty) / count,
        "mse": errors / count,
        "l1_norm": penalty / count,
        "l0": active / count,
        "explained_variance": 1 - errors / variance,
        "normalized_mse": errors / squares,
        "silent_fraction": 1 - fired.double().mean().item(),
    }


def train(args, weights, files, steps, limit):
    """Trains the weights in place. Returns what was measured at each step and the time at the start and after each step."""
    parameters = [weights[name].requires_grad_() for name in NAMES]
    optimizer = torch.optim.Adam(parameters, lr=args.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
    fast_forward = forward
    if args.compile:
        fast_forward = torch.compile(forward, dynamic=False)
        mse, l1, _ = fast_forward(torch.randn(args.batch, len(weights["b_dec"])), *parameters)
        (mse + l1).backward()
        optimizer.zero_grad()
    measured, clock = [], [time.perf_counter()]
    for step, batch in enumerate(rows.batches(files, args.batch, limit)):
        x = batch.float() * args.scale
        optimizer.param_groups[0]["lr"] = lr_at(step, steps, args.lr)
        # A short last batch would be compiled again for its one step.
        mse, l1, l0 = (fast_forward if len(x) == args.batch else forward)(x, *parameters)
        loss = mse + l1_at(step, steps, args.l1) * l1
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        measured.append(torch.stack([loss.detach(), mse.detach(), l1.detach(), l0, grad_norm]))
        clock.append(time.perf_counter())
        if args.progress and (step + 1) % args.progress == 0:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f} l0 {l0.item():.1f}", file=sys.stderr, flush=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(measured).tolist(), clock


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--eval", nargs="+")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--features", type=int)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--l1", type=float, default=5.0)
    parser.add_argument("--steps", type=int, help="stop after so many; the schedules end there too")
    parser.add_argument("--init", help="safetensors file with the initial weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--matmul", default="medium", choices=["highest", "high", "medium"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", help="where to write the log")
    parser.add_argument("--save", help="where to write the final weights")
    parser.add_argument("--progress", type=int, default=0, help="a line on stderr every so many steps")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul)

    files = rows.parquet_files(args.train)
    limit = min(rows.row_count(files), args.steps * args.batch if args.steps else sys.maxsize)
    steps = -(-limit // args.batch)
    if args.init:
        weights = load_file(args.init)
    elif args.features:
        weights = initial_weights(next(rows.batches(files, 1)).shape[1], args.features, args.seed)
    else:
        parser.error("give --features or --init")

    measured, clock = train(args, weights, files, steps, limit)
    half = steps // 2
    summary = {
        "rows": limit,
        "steps": steps,
        "tokens_per_s": limit / (clock[-1] - clock[0]),
        "tokens_per_s_last_half": (limit - half * args.batch) / (clock[-1] - clock[half]),
        "step_ms_median": 1e3 * sorted(b - a for a, b in zip(clock, clock[1:]))[half],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "arguments": vars(args),
    }
    if args.eval:
        summary["eval"] = evaluate(weights, rows.parquet_files(args.eval), args.scale, args.l1)
    if args.save:
        save_file({name: weights[name].contiguous() for name in NAMES}, args.save)
    if args.json:
        with open(args.json, "w") as log:
            for step, values in enumerate(measured):
                named = dict(zip(("loss", "mse", "l1_norm", "l0", "grad_norm"), values))
                print(json.dumps({"step": step, **named, "step_ms": 1e3 * (clock[step + 1] - clock[step])}), file=log)
            print(json.dumps({"summary": summary}), file=log)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()

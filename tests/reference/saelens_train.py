"""The same training with SAELens 6: its StandardTrainingSAE and its own SAETrainer, fed with our Parquet rows.

    saelens_train.py --train FILES_OR_FOLDERS --scale S --features F --batch B --lr 3e-4 --l1 5
                     [--eval FILES_OR_FOLDERS] [--steps N] [--init WEIGHTS] [--seed K] [--threads T]
                     [--matmul highest|high|medium] [--compile] [--autocast] [--json FILE] [--save WEIGHTS]

Loss, decoder-norm-weighted L1, Adam, clipping at 1, initial norm 0.1, linear lr decay over the last 20 % and the L1
warm-up over the first 5 % are SAELens's own. What its options leave different from recipe.py: lambda(s) = l1 * min(1, s/w),
one step behind; the initial weights are its own draw unless --init is given. Rows are scaled before SAELens sees them, and
it keeps its firing statistics, as it does for every user. Huge pages and --matmul are set as in recipe.py; --compile is what
its runner does for compile_sae, and its first call falls into the run (tokens_per_s_last_half is free of it).
tokens/s counts the whole of `fit`; the held-out metrics are those of recipe.py, computed from the trained weights.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in recipe.py

import sae_lens
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file

import recipe
import rows


def scaled_batches(files, batch, limit, scale, clock):
    """Float32 batches; notes in `clock` when each one was asked for."""
    for rows_of_step in rows.batches(files, batch, limit):
        yield rows_of_step.float() * scale
        clock.append(time.perf_counter())


def build(args, width, steps, limit, batches):
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=width,
            d_sae=args.features,
            apply_b_dec_to_input=False,
            normalize_activations="none",
            decoder_init_norm=recipe.INIT_NORM,
            l1_coefficient=args.l1,
            l1_warm_up_steps=recipe.warm_up_steps(steps),
        )
    )
    if args.init:
        sae.load_state_dict(load_file(args.init))
    trainer_config = SAETrainerConfig(
        total_training_samples=limit,
        train_batch_size_samples=args.batch,
        lr=args.lr,
        lr_end=args.lr,  # must be set; the constant schedule decays from lr to 0 whatever it says
        lr_decay_steps=round(0.2 * steps),
        adam_beta1=0.9,
        adam_beta2=0.999,
        device="cpu",
        autocast=args.autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    if args.compile:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    return SAETrainer(trainer_config, sae, batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--eval", nargs="+")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--features", type=int, required=True)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--l1", type=float, default=5.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--init")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--matmul", default="medium", choices=["highest", "high", "medium"])
    parser.add_argument("--compile", action="store_true", help="as SAELens's runner does for compile_sae")
    parser.add_argument("--autocast", action="store_true", help="SAELens's own bfloat16 option")
    parser.add_argument("--json", help="where to write the summary")
    parser.add_argument("--save", help="where to write the final weights")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul)
    torch.manual_seed(args.seed)

    files = rows.parquet_files(args.train)
    limit = min(rows.row_count(files), args.steps * args.batch if args.steps else sys.maxsize)
    steps = -(-limit // args.batch)
    clock = []
    width = next(rows.batches(files, 1)).shape[1]
    trainer = build(args, width, steps, limit, scaled_batches(files, args.batch, limit, args.scale, clock))

    clock.append(time.perf_counter())
    trainer.fit()
    clock.append(time.perf_counter())  # the last batch's own end: nothing asks for another one

    half = steps // 2
    weights = {name: getattr(trainer.sae, name).detach().contiguous() for name in recipe.NAMES}
    summary = {
        "rows": limit,
        "steps": steps,
        "tokens_per_s": limit / (clock[-1] - clock[0]),
        "tokens_per_s_last_half": (limit - half * args.batch) / (clock[-1] - clock[half]),
        "step_ms_median": 1e3 * sorted(b - a for a, b in zip(clock, clock[1:]))[half],
        "sae_lens": sae_lens.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "arguments": vars(args),
    }
    if args.eval:
        summary["eval"] = recipe.evaluate(weights, rows.parquet_files(args.eval), args.scale, args.l1)
    if args.save:
        save_file(weights, args.save)
    if args.json:
        with open(args.json, "w") as log:
            json.dump(summary, log, indent=1)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()

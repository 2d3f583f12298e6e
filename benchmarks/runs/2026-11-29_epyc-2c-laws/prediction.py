"""Runs of the largest budget beside what the fit to all others predicts of them: prediction.py laws.json"""

import json
import sys

left_out = json.load(open(sys.argv[1]))["leave_out"]
print(f"{'F':>6} {'steps':>6} {'measured':>9} {'predicted':>10} {'95 % interval':>22} inside")
inside = 0
for run in left_out["runs"]:
    predicted = run["predicted"]
    holds = predicted["low"] <= run["loss"] <= predicted["high"]
    inside += holds
    interval = f"{predicted['low']:.4f} … {predicted['high']:.4f}"
    print(f"{run['features']:6.0f} {run['steps']:6.0f} {run['loss']:9.4f} {predicted['value']:10.4f} {interval:>22} {'yes' if holds else 'no'}")
print(f"{inside} of {len(left_out['runs'])} inside; measured minus predicted {left_out['bias']:+.4f} on average, {left_out['error']:.4f} in root mean square")
print(f"best F as predicted over best F of all runs: {left_out['features_ratio']:.3f}")

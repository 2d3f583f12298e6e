"""L(F, S) = E + A F^-alpha + B S^-beta by scipy, in all five parameters at once, for comparison with `sae scaling fit`.

    scaling.py FILE.csv      columns features, steps, loss

Prints {"least_squares": {...}, "huber": {...}} with E, A, B, alpha, beta in full precision. Inputs are divided by their geometric
means; a coarse grid of exponents gives starts for `least_squares` (its `huber` has the same quadratic part and the same slopes), and the
gradient's root makes the last digits. Huber's delta is 1.345 robust standard deviations of the residuals of least squares: the
element n // 2 of their sorted sizes over 0.6745.
"""

import csv
import json
import sys

import numpy as np
from scipy.optimize import least_squares, root


def main(path):
    with open(path, newline="") as file:
        rows = [[float(row[name]) for name in ("features", "steps", "loss")] for row in csv.DictReader(file)]
    features, steps, loss = np.array(rows).T
    centre = [np.log(features).mean(), np.log(steps).mean()]
    x, y = np.log(features) - centre[0], np.log(steps) - centre[1]

    def residuals(p):
        return p[0] + p[1] * np.exp(-p[3] * x) + p[2] * np.exp(-p[4] * y) - loss

    def jacobian(p):
        u, v = np.exp(-p[3] * x), np.exp(-p[4] * y)
        return np.stack([np.ones_like(x), u, v, -p[1] * x * u, -p[2] * y * v], axis=1)

    def fit(kind, delta, starts):
        tight = dict(ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=20_000)
        bounds = ([0, 0, 0, 0.02, 0.02], [np.inf, np.inf, np.inf, 4, 4])
        ends = [least_squares(residuals, s, jacobian, bounds, loss=kind, f_scale=delta, x_scale="jac", **tight) for s in starts]
        best = min(ends, key=lambda end: end.cost).x
        slope = (lambda r: r) if kind == "linear" else (lambda r: np.clip(r, -delta, delta))
        polished = root(lambda p: jacobian(p).T @ slope(residuals(p)), best, method="hybr", tol=1e-15).x
        return polished if np.abs(polished - best).max() < 1e-3 else best

    starts = [[loss.min() / 2, loss.std(), loss.std(), a, b] for a in (0.1, 0.3, 0.9) for b in (0.1, 0.3, 0.9)]
    squares = fit("linear", 1.0, starts)
    delta = 1.345 * np.sort(np.abs(residuals(squares)))[len(loss) // 2] / 0.6744897501960817
    huber = fit("huber", delta, [squares] + starts)

    def named(p):
        a, b = p[1] * np.exp(p[3] * centre[0]), p[2] * np.exp(p[4] * centre[1])
        return {"E": p[0], "A": a, "B": b, "alpha": p[3], "beta": p[4]}

    print(json.dumps({"least_squares": named(squares), "huber": named(huber)}))


if __name__ == "__main__":
    main(sys.argv[1])

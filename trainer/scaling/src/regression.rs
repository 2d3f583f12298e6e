//! Linear least squares with intervals that clusters of shared noise do not make too narrow, and the parabolas behind cross-checks.

use std::collections::BTreeSet;

use nalgebra::{DMatrix, DVector};

use crate::bootstrap::{student, undone_leverage};
use crate::laws::{Estimate, PowerLaw};

/// Coefficients of `y` on the columns of `x`, a row an observation; `None` where they cannot be told apart. Standard errors are those of
/// the jackknife over clusters (CR3), intervals those of Student's t with as many degrees of freedom as there are clusters
/// beyond the coefficients.
pub fn regress(x: &DMatrix<f64>, y: &[f64], clusters: &[usize]) -> Option<Vec<Estimate>> {
    let (rows, columns) = x.shape();
    // Columns of one size: a rank is judged by the least singular value.
    let sizes: Vec<f64> = x.column_iter().map(|column| column.norm()).collect();
    if rows < columns || sizes.contains(&0.0) {
        return None;
    }
    let scaled = DMatrix::from_fn(rows, columns, |row, column| x[(row, column)] / sizes[column]);
    let bread = (scaled.transpose() * &scaled).try_inverse().filter(|_| {
        let singular = scaled.singular_values();
        singular.min() > 1e-9 * singular.max()
    })?;
    let found = &bread * scaled.transpose() * DVector::from_column_slice(y);
    let left = DVector::from_column_slice(y) - &scaled * &found;
    let noise = DVector::from_vec(undone_leverage(&scaled, left.as_slice(), clusters));
    let many = clusters.iter().max().map_or(0, |most| most + 1);
    let mut meat = DMatrix::zeros(columns, columns);
    for cluster in 0..many {
        let runs: Vec<usize> = (0..rows).filter(|row| clusters[*row] == cluster).collect();
        let score = scaled.select_rows(&runs).transpose() * noise.select_rows(&runs);
        meat += &score * score.transpose();
    }
    let variance = &bread * meat * &bread;
    let there = clusters.iter().collect::<BTreeSet<_>>().len();
    let t = student(there.saturating_sub(columns) as f64);
    let estimate = |at: usize| {
        let (value, half) = (found[at] / sizes[at], t * variance[(at, at)].max(0.0).sqrt() / sizes[at]);
        Estimate { value, low: value - half, high: value + half }
    };
    Some((0..columns).map(estimate).collect())
}

/// y = coefficient · x^exponent through at least three points.
pub fn power_law(x: &[f64], y: &[f64]) -> Option<PowerLaw> {
    if x.len() < 3 {
        return None;
    }
    // At the middle of the points the two coefficients hardly depend on each other; at x = 1 they do.
    let ln_y: Vec<f64> = y.iter().map(|y| y.ln()).collect();
    let matrix = DMatrix::from_fn(x.len(), 2, |row, column| if column == 0 { 1.0 } else { x[row].ln() });
    let found = regress(&matrix, &ln_y, &(0..x.len()).collect::<Vec<_>>())?;
    let Estimate { value, low, high } = found[0];
    // A coefficient beyond what a double holds is given as the nearest that it does.
    let exp = |ln: f64| ln.clamp(-700.0, 700.0).exp();
    Some(PowerLaw { coefficient: Estimate { value: exp(value), low: exp(low), high: exp(high) }, exponent: found[1] })
}

/// A parabola a + b·t + c·t² with c > 0 by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vertex {
    /// `[a, b, c]`.
    pub parabola: [f64; 3],
    /// The t of its least value.
    pub at: f64,
    /// That value.
    pub value: f64,
    /// Whether c ≤ 0, when `at` is the t of the least measured value, or the vertex lies outside the t that there are.
    pub at_edge: bool,
}

/// Of at least three different `t`; `None` of fewer.
pub fn vertex(t: &[f64], y: &[f64]) -> Option<Vertex> {
    let centre = t.iter().sum::<f64>() / t.len().max(1) as f64;
    let matrix = DMatrix::from_fn(t.len(), 3, |row, power| (t[row] - centre).powi(power as i32));
    let found = regress(&matrix, y, &(0..t.len()).collect::<Vec<_>>())?;
    let [a, b, c] = [found[0].value, found[1].value, found[2].value];
    let parabola = [a - b * centre + c * centre * centre, b - 2.0 * c * centre, c];
    let (low, high) = t.iter().fold((f64::MAX, f64::MIN), |(low, high), t| (low.min(*t), high.max(*t)));
    if c <= 0.0 {
        let least = t.iter().zip(y).min_by(|a, b| a.1.total_cmp(b.1))?;
        return Some(Vertex { parabola, at: *least.0, value: *least.1, at_edge: true });
    }
    let off = -b / (2.0 * c);
    let at = centre + off;
    Some(Vertex { parabola, at, value: a - b * b / (4.0 * c), at_edge: !(low..=high).contains(&at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: with each observation a cluster of its own, CR3 is HC3.
    #[test]
    fn a_line_has_the_standard_errors_of_its_formula() {
        let (x, y) = ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.1, 1.2, 1.7, 3.4, 3.9, 5.2, 5.8, 7.1]);
        let matrix = DMatrix::from_fn(8, 2, |row, column| if column == 0 { 1.0 } else { x[row] });
        let found = regress(&matrix, &y, &[0, 1, 2, 3, 4, 5, 6, 7]).expect("a line");
        let mean = y.iter().sum::<f64>() / 8.0;
        let slope = x.iter().zip(y).map(|(x, y)| (x - 3.5) * (y - mean)).sum::<f64>() / 42.0;
        let meat = |(x, y): (&f64, f64)| {
            let leverage = 1.0 / 8.0 + (x - 3.5) * (x - 3.5) / 42.0;
            ((x - 3.5) * (y - mean - slope * (x - 3.5)) / (1.0 - leverage)).powi(2)
        };
        let error = x.iter().zip(y).map(meat).sum::<f64>().sqrt() / 42.0;
        // t with 6 degrees of freedom.
        assert!((found[1].value - slope).abs() < 1e-12, "{found:?} {slope}");
        assert!((found[1].high - slope - 2.446_911_851 * error).abs() < 1e-8, "{found:?} {error}");
        let same = DMatrix::from_element(8, 2, 1.0);
        assert_eq!(regress(&same, &y, &[0; 8]), None);
    }

    #[test]
    fn power_laws_and_vertices_are_found_where_they_are() {
        let x = [1e3, 1e4, 1e5, 1e6];
        let law = power_law(&x, &x.map(|x| 3.0 * x.powf(0.4))).expect("a law");
        assert!((law.coefficient.value - 3.0).abs() < 1e-9 && (law.exponent.value - 0.4).abs() < 1e-12, "{law:?}");
        assert!(law.exponent.high - law.exponent.low < 1e-9);
        assert_eq!(power_law(&x[..2], &x[..2]), None);
        let t = [10.0, 11.0, 12.0, 13.0];
        let found = vertex(&t, &t.map(|t| 2.0 + 0.5 * (t - 11.3) * (t - 11.3))).expect("a parabola");
        assert!((found.at - 11.3).abs() < 1e-9 && (found.value - 2.0).abs() < 1e-9 && !found.at_edge, "{found:?}");
        let value = |t: f64| found.parabola[0] + found.parabola[1] * t + found.parabola[2] * t * t;
        assert!((value(11.3) - 2.0).abs() < 1e-9);
        assert!(vertex(&t, &t.map(|t| (t - 20.0) * (t - 20.0))).expect("a parabola").at_edge);
        let hill = vertex(&t, &t.map(|t| -(t - 11.3) * (t - 11.3))).expect("a parabola");
        assert!(hill.at_edge && hill.at == 13.0, "{hill:?}");
        assert_eq!(vertex(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]), None);
    }
}

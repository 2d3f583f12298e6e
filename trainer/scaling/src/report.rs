//! What a fit comes to, to look at: a page with all its charts and numbers, and each chart as a file.
//!
//! Charts show what was measured as points and what was fitted as lines and bands; a cross-check is dashed. Numbers on the page are those of
//! laws.json, digit by digit: both are made from the same values by the same serialiser.

mod numbers;

use page::{Axis, Block, Chart, Colour, Fact, Hover, Marks, Page, Point as Mark, Series, compact, scientific};

use crate::laws::{Estimate, Laws, LrLaw, Point, PowerLaw, Trend, WithoutE};

/// Points of a computed curve.
const SAMPLES: usize = 48;

/// Most curves of a kind that a chart has; of more groups, some are left without.
const MOST_CURVES: usize = 12;

/// A page, and its charts in files.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One HTML file that needs nothing else.
    pub html: String,
    /// Names of files, and SVG that stands alone.
    pub plots: Vec<(String, String)>,
}

/// The report of one law.
///
/// # Errors
/// When a value of `laws` has no JSON, such as a number that is not finite where laws.json has none.
pub fn report(laws: &Laws) -> Result<Report, serde_json::Error> {
    let loss = vec![by_features(laws), by_steps(laws), frontier(laws)];
    let mut allocation = vec![features_opt(laws), steps_opt(laws)];
    if let Some(law) = &laws.lr_opt {
        allocation.extend([lr_opt(law), lr_loss(laws, law)]);
    }
    let mut trust = vec![residuals(laws)];
    trust.extend(leave_out(laws));
    let quantities = quantities(laws);
    let plots = loss.iter().chain(&allocation).chain(&trust).chain(&quantities);
    let plots = plots.map(|chart| (format!("{}.svg", chart.name), chart.to_svg())).collect();
    let heading = |text: &str| Block::Heading(text.to_owned());
    let mut blocks = vec![
        Block::Warnings(laws.warnings.iter().map(|warning| warning.text.clone()).collect()),
        facts(laws),
        heading("Loss"),
        Block::Charts(loss),
        heading("Allocation of a budget"),
        Block::Charts(allocation),
        heading("How far the fit can be trusted"),
        Block::Charts(trust),
    ];
    if !quantities.is_empty() {
        blocks.extend([heading("What the dictionaries are like"), Block::Charts(quantities)]);
    }
    blocks.push(heading("Numbers"));
    blocks.push(Block::Text(
        "These are the numbers of laws.json, in full: rounded parameters predict wrongly.".to_owned(),
    ));
    blocks.extend(numbers::tables(laws)?);
    Ok(Report { html: Page { title: "Scaling laws".to_owned(), lead: lead(laws), blocks }.to_html(), plots })
}

fn lead(laws: &Laws) -> String {
    let quality = &laws.quality;
    let mut common = Vec::new();
    common.extend(laws.identity.width.map(|width| format!("D {width}")));
    common.extend(laws.identity.batch.map(|batch| format!("batch {batch}")));
    common.extend(laws.identity.l1.map(|l1| format!("λ {}", compact(l1))));
    let common = if common.is_empty() { String::new() } else { format!(" at {}", common.join(", ")) };
    format!(
        "Loss of sparse autoencoders with F features after S steps: L(F, S) = E + A·F^−α + B·S^−β, fitted to {} runs of {} \
         configurations over {} budgets{common}. Compute C is F × S. Intervals are of 95 %.",
        quality.runs, quality.configurations, quality.budgets
    )
}

fn facts(laws: &Laws) -> Block {
    let surface = &laws.surface;
    let facts = [
        ("α", surface.alpha),
        ("β", surface.beta),
        ("E", surface.e),
        ("F_opt ∝ C to the", laws.features_opt.exponent),
        ("steps_opt ∝ C to the", laws.steps_opt.exponent),
        ("L − E ∝ C to the", laws.frontier.exponent),
    ];
    let lr = laws.lr_opt.as_ref().map(|law| ("lr_opt ∝ C to the", law.exponent));
    let fact = |(name, estimate): (&str, Estimate)| Fact {
        name: name.to_owned(),
        value: compact(estimate.value),
        aside: format!("{} to {}", compact(estimate.low), compact(estimate.high)),
    };
    Block::Facts(facts.into_iter().chain(lr).map(fact).collect())
}

fn short(estimate: Estimate) -> String {
    format!("{} ({} to {})", compact(estimate.value), compact(estimate.low), compact(estimate.high))
}

/// Runs in groups of an equal value, by ascending value.
fn groups<'a>(runs: impl Iterator<Item = &'a Point>, of: impl Fn(&Point) -> f64) -> Vec<(f64, Vec<&'a Point>)> {
    let mut runs: Vec<&Point> = runs.collect();
    runs.sort_by(|a, b| of(a).total_cmp(&of(b)));
    let mut groups: Vec<(f64, Vec<&Point>)> = Vec::new();
    for run in runs {
        match groups.last_mut().filter(|(value, _)| *value == of(run)) {
            Some((_, group)) => group.push(run),
            None => groups.push((of(run), vec![run])),
        }
    }
    groups
}

fn in_surface(laws: &Laws) -> impl Iterator<Item = &Point> {
    laws.runs.iter().filter(|run| run.in_surface)
}

/// Steps of the ramp for so many groups.
fn ramp(index: usize, groups: usize) -> Colour {
    Colour::Step(index as f64 / groups.saturating_sub(1).max(1) as f64)
}

/// Whether a group of many has a curve of its own: the first, the last, and evenly between.
fn has_curve(index: usize, groups: usize) -> bool {
    groups <= MOST_CURVES || index * (MOST_CURVES - 1) / (groups - 1) != (index + 1) * (MOST_CURVES - 1) / (groups - 1)
}

/// So many numbers from `low` to `high`, in equal ratios.
fn samples(low: f64, high: f64) -> impl Iterator<Item = f64> {
    (0..SAMPLES).map(move |at| low * (high / low).powf(at as f64 / (SAMPLES - 1) as f64))
}

/// The least and the largest, with a little room.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    (low / 1.15, high * 1.15)
}

/// What a point tells of its run.
fn says(run: &Point) -> Vec<String> {
    let mut what =
        vec![format!("F {}", run.features), format!("steps {}", run.steps), format!("C {}", scientific(run.compute))];
    what.extend(run.seed.map(|seed| format!("seed {seed}")));
    what.extend(run.lr.map(|lr| format!("lr {}", compact(lr))));
    let fitted = if run.in_surface { format!(", fitted {}", compact(run.fitted)) } else { String::new() };
    vec![what.join(", "), format!("loss {}{fitted}", compact(run.loss)), run.id.clone()]
}

fn mark(run: &Point, x: f64, y: f64) -> Mark {
    Mark { x, y, interval: None, text: says(run) }
}

fn chart(name: &str, title: &str, note: &str, (x, y): (Axis, Axis), series: Vec<Series>) -> Chart {
    let (name, title, note) = (name.to_owned(), title.to_owned(), note.to_owned());
    Chart { name, title, note, x, y, series, hover: Hover::Points }
}

const FEATURES: &str = "features F";
const STEPS: &str = "steps S";
const COMPUTE: &str = "compute C = F × S";
const LOSS: &str = "held-out loss";

/// IsoFLOP curves over F.
fn by_features(laws: &Laws) -> Chart {
    let mut series = iso_flop(laws, |run| run.features, |budget, features| (features, budget / features));
    for parabola in &laws.parabolas.budgets {
        let [a, b, c] = parabola.parabola;
        let curve = samples(parabola.grid[0], parabola.grid[1]).map(|features| {
            let ln = features.ln();
            (features, a + b * ln + c * ln * ln)
        });
        series.push(Series::new("", Colour::Muted, Marks::Dashed(curve.collect())));
    }
    let note = "IsoFLOP curves: each colour is a budget C, named at its end. Solid is the surface; dashed are parabolas, the \
                cross-check.";
    let axes = (Axis::logarithmic(FEATURES), Axis::logarithmic(LOSS));
    chart("loss-features", "Loss against features", note, axes, series)
}

/// IsoFLOP curves over steps.
fn by_steps(laws: &Laws) -> Chart {
    let series = iso_flop(laws, |run| run.steps, |budget, steps| (budget / steps, steps));
    let note = "The same curves over steps: few steps of many features on the left, the reverse on the right.";
    chart("loss-steps", "Loss against steps", note, (Axis::logarithmic(STEPS), Axis::logarithmic(LOSS)), series)
}

/// Runs and the surface, each budget by itself; `size` is F and S of a budget at a place of the axis.
fn iso_flop(laws: &Laws, x: fn(&Point) -> f64, size: fn(f64, f64) -> (f64, f64)) -> Vec<Series> {
    let surface = laws.surface.parameters();
    let budgets = groups(in_surface(laws), |run| run.budget);
    let mut series = Vec::new();
    for (index, (budget, runs)) in budgets.iter().enumerate() {
        let colour = ramp(index, budgets.len());
        if has_curve(index, budgets.len()) {
            let (low, high) = span(runs.iter().map(|run| x(run)));
            let curve = samples(low, high).map(|at| {
                let (features, steps) = size(*budget, at);
                (at, surface.loss(features, steps))
            });
            series.push(Series::new(&scientific(*budget), colour, Marks::Line(curve.collect())).named_at_end());
        }
        series.push(Series::new(
            "",
            colour,
            Marks::Points(runs.iter().map(|run| mark(run, x(run), run.loss)).collect()),
        ));
    }
    series
}

/// Where the largest budget ends that was tried: to its right everything is a prediction.
fn tried(laws: &Laws, of: impl Fn(&crate::laws::Band) -> Estimate) -> Series {
    let largest = in_surface(laws).map(|run| run.compute).fold(f64::NAN, f64::max);
    let ends = laws.bands.iter().map(|band| of(band).value);
    let (low, high) = ends.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), end| (low.min(end), high.max(end)));
    Series::new("largest C tried", Colour::Muted, Marks::Dashed(vec![(largest, low), (largest, high)]))
}

fn frontier(laws: &Laws) -> Chart {
    let curve = |of: fn(&crate::laws::Band) -> f64| laws.bands.iter().map(|band| (band.compute, of(band))).collect();
    let points = in_surface(laws).map(|run| mark(run, run.compute, run.loss)).collect();
    let one_run = laws.bands.iter().map(|band| (band.compute, band.one_run.low, band.one_run.high)).collect();
    let mean = laws.bands.iter().map(|band| (band.compute, band.loss.low, band.loss.high)).collect();
    let mut series = vec![
        Series::new("one run, 95 %", Colour::Muted, Marks::Band(one_run)),
        Series::new("mean, 95 %", Colour::Kind(0), Marks::Band(mean)),
    ];
    let mut note = "The least loss that a budget reaches, up to 100 × the largest that was tried.".to_owned();
    if let Some(WithoutE { coefficient, exponent, .. }) = &laws.frontier.without_e {
        let plain = |compute: f64| coefficient.value * compute.powf(exponent.value);
        let plain = laws.bands.iter().map(|band| (band.compute, plain(band.compute))).collect();
        series.push(Series::new("without E", Colour::Kind(1), Marks::Dashed(plain)));
        note += " Dashed is the fit of a plain power law.";
    }
    series.extend([
        Series::new("least loss", Colour::Kind(0), Marks::Line(curve(|band| band.loss.value))),
        Series::new("runs", Colour::Muted, Marks::Points(points)),
        tried(laws, |band| band.loss),
    ]);
    chart("frontier", "Frontier", &note, (Axis::logarithmic(COMPUTE), Axis::logarithmic(LOSS)), series)
}

fn features_opt(laws: &Laws) -> Chart {
    let band = laws.bands.iter().map(|band| (band.compute, band.features)).collect();
    let vertices =
        laws.parabolas.budgets.iter().map(|parabola| (parabola.compute, parabola.features, parabola.at_edge));
    let law = (&laws.features_opt, laws.parabolas.features_opt.as_ref());
    allocation(
        ("features-opt", "Best number of features", "F_opt"),
        Axis::logarithmic(FEATURES),
        law,
        band,
        vertices.collect(),
    )
}

fn steps_opt(laws: &Laws) -> Chart {
    let band = laws.bands.iter().map(|band| (band.compute, band.steps)).collect();
    let vertex =
        |parabola: &crate::laws::Parabola| (parabola.compute, parabola.compute / parabola.features, parabola.at_edge);
    let law = (&laws.steps_opt, laws.parabolas.steps_opt.as_ref());
    let vertices = laws.parabolas.budgets.iter().map(vertex).collect();
    allocation(("steps-opt", "Best number of steps", "steps_opt"), Axis::logarithmic(STEPS), law, band, vertices)
}

/// A law of allocation: from the surface, and from parabolas, of whose vertices the third value says that they are off their grid.
fn allocation(
    (name, title, law_name): (&str, &str, &str),
    y: Axis,
    (law, check): (&PowerLaw, Option<&PowerLaw>),
    band: Vec<(f64, Estimate)>,
    vertices: Vec<(f64, f64, bool)>,
) -> Chart {
    let text = |compute: f64, value: f64| {
        vec![format!("C {}", scientific(compute)), format!("{law_name} {} by a parabola", compact(value))]
    };
    let point = |&(x, y, _): &(f64, f64, bool)| Mark { x, y, interval: None, text: text(x, y) };
    let (off, on): (Vec<_>, Vec<_>) =
        vertices.into_iter().filter(|vertex| vertex.1.is_finite()).partition(|vertex| vertex.2);
    let computes: Vec<f64> = band.iter().map(|(compute, _)| *compute).collect();
    let mut series = vec![
        Series::new("95 %", Colour::Kind(0), Marks::Band(band.iter().map(|(x, at)| (*x, at.low, at.high)).collect())),
        Series::new("surface", Colour::Kind(0), Marks::Line(band.iter().map(|(x, at)| (*x, at.value)).collect())),
    ];
    if let Some(check) = check {
        let line = computes.iter().map(|&compute| (compute, check.at(compute))).collect();
        series.push(Series::new("parabolas", Colour::Kind(1), Marks::Dashed(line)));
    }
    series.push(Series::new("vertices", Colour::Kind(1), Marks::Points(on.iter().map(point).collect())));
    if !off.is_empty() {
        series.push(Series::new("off the grid", Colour::Muted, Marks::Points(off.iter().map(point).collect())));
    }
    let note = format!("{law_name} = {} · C^{}.", compact(law.coefficient.value), short(law.exponent));
    chart(name, title, &note, (Axis::logarithmic(COMPUTE), y), series)
}

fn lr_opt(law: &LrLaw) -> Chart {
    let (low, high) = span(law.points.iter().map(|point| point.compute));
    let line = samples(low, high).map(|compute| (compute, law.coefficient.value * compute.powf(law.exponent.value)));
    let point = |point: &&crate::laws::LrPoint| Mark {
        x: point.compute,
        y: point.lr,
        interval: None,
        text: vec![
            format!("F {}, steps {}, C {}", point.features, point.steps, scientific(point.compute)),
            format!("best lr {}, loss {}", compact(point.lr), compact(point.loss)),
        ],
    };
    let (off, on): (Vec<_>, Vec<_>) =
        law.points.iter().filter(|point| point.lr.is_finite()).partition(|point| point.at_edge);
    let mut series = vec![
        Series::new("law", Colour::Kind(0), Marks::Line(line.collect())),
        Series::new("best of a size", Colour::Kind(0), Marks::Points(on.iter().map(point).collect())),
    ];
    if !off.is_empty() {
        series.push(Series::new("off the grid", Colour::Muted, Marks::Points(off.iter().map(point).collect())));
    }
    let note = format!("lr_opt = {} · C^{}.", compact(law.coefficient.value), short(law.exponent));
    let axes = (Axis::logarithmic(COMPUTE), Axis::logarithmic("learning rate"));
    chart("lr-opt", "Best learning rate", &note, axes, series)
}

/// What the best learning rates were read from.
fn lr_loss(laws: &Laws, law: &LrLaw) -> Chart {
    let mut series = Vec::new();
    for (index, point) in law.points.iter().enumerate() {
        let colour = ramp(index, law.points.len());
        let same = |run: &&Point| (run.features, run.steps) == (point.features, point.steps);
        let runs: Vec<(f64, &Point)> = laws.runs.iter().filter(same).filter_map(|run| Some((run.lr?, run))).collect();
        let [a, b, c] = point.parabola;
        if has_curve(index, law.points.len()) && !runs.is_empty() {
            let (low, high) = span(runs.iter().map(|(lr, _)| *lr));
            let curve = samples(low, high).map(|lr| (lr, a + b * lr.ln() + c * lr.ln() * lr.ln()));
            series.push(Series::new(&scientific(point.compute), colour, Marks::Line(curve.collect())).named_at_end());
        }
        let points = runs.iter().map(|(lr, run)| mark(run, *lr, run.loss)).collect();
        series.push(Series::new("", colour, Marks::Points(points)));
    }
    let note = "Each colour is a size, named by its compute C; lines are the parabolas whose lowest points are the best rates.";
    let axes = (Axis::logarithmic("learning rate"), Axis::logarithmic(LOSS));
    chart("lr-loss", "Loss against learning rate", note, axes, series)
}

fn residuals(laws: &Laws) -> Chart {
    let (low, high) = span(in_surface(laws).map(|run| run.compute));
    let spread = 2.0 * laws.quality.residual_sd;
    let budgets = groups(in_surface(laws), |run| run.features);
    let mut series = vec![
        Series::new("± 2 sd", Colour::Muted, Marks::Band(vec![(low, -spread, spread), (high, -spread, spread)])),
        Series::new("", Colour::Muted, Marks::Line(vec![(low, 0.0), (high, 0.0)])),
    ];
    for (index, (_, runs)) in budgets.iter().enumerate() {
        let points = runs.iter().map(|run| mark(run, run.compute, run.residual)).collect();
        series.push(Series::new("", ramp(index, budgets.len()), Marks::Points(points)));
    }
    let note = format!(
        "Measured minus fitted; colours go by features, from few to many. A pattern in them is what the surface misses. Their standard \
         deviation is {}.",
        compact(laws.quality.residual_sd)
    );
    let axes = (Axis::logarithmic(COMPUTE), Axis::linear("residual, in units of loss"));
    chart("residuals", "Residuals", &note, axes, series)
}

fn leave_out(laws: &Laws) -> Option<Chart> {
    let left = laws.leave_out.as_ref()?;
    let text = |run: &crate::laws::LeftOut, what: String| {
        vec![format!("F {}, steps {}", run.features, run.steps), what, run.id.clone()]
    };
    let measured = left.runs.iter().map(|run| Mark {
        x: run.features,
        y: run.loss,
        interval: None,
        text: text(run, format!("measured {}", compact(run.loss))),
    });
    let predicted = left.runs.iter().map(|run| Mark {
        x: run.features,
        y: run.predicted.value,
        interval: Some((run.predicted.low, run.predicted.high)),
        text: text(run, format!("predicted {}", short(run.predicted))),
    });
    let series = vec![
        Series::new("predicted for one run, 95 %", Colour::Kind(0), Marks::Points(predicted.collect())),
        Series::new("measured", Colour::Kind(1), Marks::Points(measured.collect())),
    ];
    let note = format!(
        "Runs of the largest budget, C {}, and what the fit to all smaller budgets says of them. Root of the mean squared error: {}.",
        scientific(left.compute),
        compact(left.error)
    );
    let axes = (Axis::logarithmic(FEATURES), Axis::linear(LOSS));
    Some(chart("leave-out", "Largest budget, predicted", &note, axes, series))
}

/// L0, explained variance and dead share, against F and against C.
fn quantities(laws: &Laws) -> Vec<Chart> {
    type Quantity = (&'static str, &'static str, fn(&Point) -> Option<f64>, Axis);
    let quantities: [Quantity; 3] = [
        ("l0", "L0", |run| run.l0, Axis::logarithmic("active features, a row")),
        (
            "explained_variance",
            "Explained variance",
            |run| run.explained_variance,
            Axis::linear("share of the variance"),
        ),
        ("dead_fraction", "Dead features", |run| run.dead_fraction, Axis::linear("share of all features").from(0.0)),
    ];
    let mut charts = Vec::new();
    for (name, title, of, y) in quantities {
        if !in_surface(laws).any(|run| of(run).is_some()) {
            continue;
        }
        let trend = laws.trends.iter().find(|trend| trend.name == name);
        let file = name.replace('_', "-");
        let budgets = groups(in_surface(laws), |run| run.budget);
        let mut over_features = quantity(&budgets, of, |run| run.features);
        over_features.extend(trend.into_iter().flat_map(|trend| trends(&budgets, trend)));
        let note = "Colours go by budget, from small to large. Dashed is a + b·ln F + c·ln S.";
        let axes = (Axis::logarithmic(FEATURES), y.clone());
        charts.push(chart(
            &format!("{file}-features"),
            &format!("{title} against features"),
            note,
            axes,
            over_features,
        ));
        let sizes = groups(in_surface(laws), |run| run.features);
        let over_compute = quantity(&sizes, of, |run| run.compute);
        let note = "Colours go by features, from few to many.";
        let axes = (Axis::logarithmic(COMPUTE), y);
        charts.push(chart(&format!("{file}-compute"), &format!("{title} against compute"), note, axes, over_compute));
    }
    charts
}

/// Points, each group in its colour.
fn quantity(groups: &[(f64, Vec<&Point>)], of: fn(&Point) -> Option<f64>, x: fn(&Point) -> f64) -> Vec<Series> {
    let points = |runs: &[&Point]| runs.iter().filter_map(|run| Some(mark(run, x(run), of(run)?))).collect();
    let series = |(index, (_, runs)): (usize, &(f64, Vec<&Point>))| {
        Series::new("", ramp(index, groups.len()), Marks::Points(points(runs)))
    };
    groups.iter().enumerate().map(series).collect()
}

/// The trend over features through each budget.
fn trends(budgets: &[(f64, Vec<&Point>)], trend: &Trend) -> Vec<Series> {
    let mut series = Vec::new();
    for (index, (budget, runs)) in budgets.iter().enumerate().filter(|(index, _)| has_curve(*index, budgets.len())) {
        let (low, high) = span(runs.iter().map(|run| run.features));
        let curve = samples(low, high).map(|features| {
            let (per_features, per_steps) = (trend.per_features.value, trend.per_steps.value);
            (features, trend.intercept + per_features * features.ln() + per_steps * (budget / features).ln())
        });
        series.push(Series::new("", ramp(index, budgets.len()), Marks::Dashed(curve.collect())));
    }
    series
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::laws::Parameters;
    use crate::run::groups as groups_of;
    use crate::{Options, Run, fit};

    /// Runs over eight budgets, five sizes and two seeds each, with a sine for noise; at three of them learning rates were swept.
    fn runs() -> Vec<Run> {
        let truth = Parameters { e: 1.9051, a: 40.005, b: 20.509, alpha: 0.3511, beta: 0.4587 };
        let (coefficient, exponent) = truth.features_opt();
        let mut runs = Vec::new();
        let mut add = |compute: f64, features: f64, seed: u64, lr: f64| {
            let steps = (compute / features).round();
            let off = (lr / (0.02 * compute.powf(-0.2))).ln();
            let noise = 0.004 * (features + 1.7 * steps + seed as f64).sin();
            runs.push(Run {
                id: format!("sweep/<f{features}>-s{steps}-{seed}-{lr}"),
                features,
                steps,
                loss: truth.loss(features, steps) + 0.02 * off * off + noise,
                lr: Some(lr),
                seed: Some(seed),
                budget: Some(compute),
                l0: Some(8.0 + features.ln() + 20.0 * noise),
                explained_variance: Some(1.0 - 1.0 / features.ln()),
                dead_fraction: Some(0.01 + 2e-7 * features),
                ..Run::default()
            });
        };
        for budget in 0..8 {
            let compute = 1e6 * 10f64.powf(0.5 * f64::from(budget));
            let best = coefficient * compute.powf(exponent);
            for (size, seed) in (-2..=2).flat_map(|size| [(size, 1), (size, 2)]) {
                add(compute, (best * 2f64.powf(0.5 * f64::from(size))).round(), seed, 1e-3);
            }
            if budget % 3 == 0 {
                [2e-4, 5e-3].into_iter().for_each(|lr| add(compute, best.round(), 1, lr));
            }
        }
        runs
    }

    fn laws() -> Laws {
        let options = Options { replicates: 40, ..Options::default() };
        fit(&groups_of(runs()).remove(0).runs, &options).expect("laws")
    }

    /// Every number of laws.json, as its text, in the cells of the page.
    #[test]
    fn numbers_on_the_page_are_those_of_the_file() {
        let laws = laws();
        let html = report(&laws).expect("a report").html;
        let cells: std::collections::BTreeSet<&str> = html
            .split("<td class=\"")
            .skip(1)
            .filter_map(|cell| cell.split_once('>')?.1.split_once("</td>"))
            .map(|cell| cell.0)
            .collect();
        let mut open = vec![serde_json::to_value(Laws { draws: Vec::new(), ..laws.clone() }).expect("JSON")];
        let mut seen = 0;
        while let Some(value) = open.pop() {
            match value {
                Value::Object(object) => open.extend(object.into_iter().map(|(_, value)| value)),
                Value::Array(list) if list.first().is_some_and(Value::is_number) => {
                    assert!(cells.contains(Value::Array(list).to_string().as_str()));
                }
                Value::Array(list) => open.extend(list),
                Value::Number(number) => {
                    assert!(cells.contains(number.to_string().as_str()), "{number} is not on the page");
                    seen += 1;
                }
                _ => {}
            }
        }
        assert!(seen > 1000, "{seen}");
    }

    #[test]
    fn every_chart_is_a_file_too_and_warnings_stand_on_top() {
        let mut laws = laws();
        laws.warnings
            .push(crate::laws::Warning { kind: "edge".to_owned(), text: "the optimum is <outside>".to_owned() });
        let report = report(&laws).expect("a report");
        let names: Vec<&str> = report.plots.iter().map(|(name, _)| name.as_str()).collect();
        let first =
            ["loss-features.svg", "loss-steps.svg", "frontier.svg", "features-opt.svg", "steps-opt.svg", "lr-opt.svg"];
        assert_eq!(names[..6], first);
        assert_eq!(names[6..9], ["lr-loss.svg", "residuals.svg", "leave-out.svg"]);
        assert_eq!(names.len(), 15, "{names:?}");
        assert!(report.plots.iter().all(|(_, svg)| svg.starts_with("<?xml") && !svg.contains("NaN")));
        let warning = report.html.find("the optimum is &lt;outside&gt;").expect("the warning, escaped");
        assert!(report.html.find("<svg").is_some_and(|chart| warning < chart));
        assert!(
            report.html.contains("seed 2, lr 0.001") && !report.html.contains("sweep/<"),
            "a point tells its configuration"
        );
    }

    #[test]
    fn a_law_of_few_runs_has_a_page() {
        let mut laws = laws();
        laws.runs.retain(|run| run.in_surface);
        laws.runs.truncate(1);
        (laws.lr_opt, laws.leave_out, laws.warnings) = (None, None, Vec::new());
        (laws.parabolas.budgets, laws.bands, laws.trends) = (Vec::new(), Vec::new(), Vec::new());
        let report = report(&laws).expect("a report");
        assert!(!report.html.contains("NaN") && report.plots.len() == 12, "{}", report.plots.len());
        laws.runs.clear();
        assert!(super::report(&laws).expect("a report").html.contains("nothing to show yet"));
    }
}

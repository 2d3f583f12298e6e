//! report.html: a run to look at, in the folder of the run.

use page::{Axis, Bar, Block, Chart, Colour, Fact, Hover, Marks, Page, Point, Series, Table, compact};
use serde_json::Value;

use crate::Error;
use crate::recipe::Recipe;
use crate::report::curves::{Curve, Curves};
use crate::report::hparams::flatten;
use crate::report::metrics::DensityHistogram;
use crate::report::summary::{EvaluatedOn, Summary};

/// How it ends, or how far it has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Progress<'a> {
    /// It goes on.
    Training {
        /// Steps done.
        step: u64,
        /// All steps.
        steps: u64,
    },
    /// It is done.
    Done(&'a Summary),
}

const TRAINING: Colour = Colour::Kind(0);
const HELD_OUT: Colour = Colour::Kind(1);

/// The page of a run in the folder `place`.
///
/// # Errors
/// [`Error::Internal`].
pub(crate) fn report(place: &str, recipe: &Recipe, curves: &Curves, progress: Progress<'_>) -> Result<String, Error> {
    let mut blocks = Vec::new();
    let mut charts = over_tokens(curves);
    let (mut density, mut evaluated) = (curves.density.clone(), "on held-out rows");
    if let Progress::Done(summary) = progress {
        density = Some((summary.tokens, summary.density.clone()));
        if summary.evaluated_on == EvaluatedOn::LastTrainingRows {
            evaluated = "on the last training rows";
        }
        blocks.push(facts(summary));
    }
    charts.push(density_chart(density.as_ref(), evaluated));
    blocks.push(Block::Charts(charts));
    if let Progress::Done(summary) = progress {
        blocks.push(Block::Heading("Summary".to_owned()));
        let json = serde_json::from_slice(&summary.to_json()?).map_err(|error| Error::Internal(error.into()))?;
        blocks.push(table("The numbers of summary.json", &json));
    }
    blocks.push(Block::Heading("Recipe".to_owned()));
    blocks.push(table("Every key with its value", &toml::from_str(&recipe.to_toml()).unwrap_or_default()));
    let name = place.rsplit('/').find(|part| !part.is_empty()).unwrap_or(place);
    Ok(Page { title: format!("Run {name}"), lead: lead(place, recipe, curves, progress), blocks }.to_html())
}

fn lead(place: &str, recipe: &Recipe, curves: &Curves, progress: Progress<'_>) -> String {
    let features = recipe.sae.features;
    let state = match progress {
        Progress::Training { step, steps } => {
            format!("in training: {step} of {steps} steps, {} tokens", compact(curves.tokens as f64))
        }
        Progress::Done(summary) => format!("done: {} steps, {} tokens", summary.steps, compact(summary.tokens as f64)),
    };
    format!("{place}: a sparse autoencoder of {features} features, {state}.")
}

fn facts(summary: &Summary) -> Block {
    let metric = |name: &str, value: Option<f64>| {
        value.map(|value| Fact { name: name.to_owned(), value: compact(value), aside: String::new() })
    };
    let metrics = summary.metrics.as_ref();
    let facts = [
        metric("loss", metrics.map(|metrics| metrics.loss)),
        metric("L0", metrics.map(|metrics| metrics.l0)),
        metric("explained variance", metrics.and_then(|metrics| metrics.explained_variance)),
        metric("dead features", Some(summary.dead_fraction)),
        metric("tokens", Some(summary.tokens as f64)),
        metric("tokens a second", Some(summary.tokens_per_s)),
        metric("directions found", summary.recovered),
    ];
    Block::Facts(facts.into_iter().flatten().collect())
}

fn over_tokens(curves: &Curves) -> Vec<Chart> {
    let chart = |name: &str, title: &str, y: Axis, note: &str, series: Vec<Series>| Chart {
        name: name.to_owned(),
        title: title.to_owned(),
        note: note.to_owned(),
        x: Axis::linear("tokens"),
        y,
        series,
        hover: Hover::Along,
    };
    let rates = [(&curves.tokens_per_s, "in steps", TRAINING), (&curves.tokens_per_s_wall, "by the clock", HELD_OUT)];
    let rates = rates.map(|(curve, name, colour)| Series::new(name, colour, Marks::Line(curve.training.points())));
    vec![
        chart(
            "loss",
            "Loss",
            Axis::logarithmic("squared error + λ · L1 norm, a row"),
            "Training rows are measured before they are trained on, with the λ of their step; held-out rows with the final λ.",
            both(&curves.loss),
        ),
        chart(
            "l0",
            "L0",
            Axis::logarithmic("active features, a row"),
            "Mean number of features that are active on a row.",
            both(&curves.l0),
        ),
        chart(
            "explained-variance",
            "Explained variance",
            Axis::linear("share of the variance, 1 is all").within(0.0, 1.0),
            "1 − squared error / variance of the rows. What is below 0 is cut off.",
            both(&curves.explained_variance),
        ),
        chart(
            "dead-fraction",
            "Dead features",
            Axis::linear("share of all features").from(0.0),
            "Features that were silent on all of the last train.dead_window tokens, or on all so far.",
            both(&curves.dead_fraction),
        ),
        chart(
            "rate",
            "Rate",
            Axis::linear("tokens a second").from(0.0),
            "In steps, data included; by the clock also evaluations and checkpoints that were waited for.",
            rates.into(),
        ),
    ]
}

/// Training as a line, evaluations as points; a series that has none is not named.
fn both(curve: &Curve) -> Vec<Series> {
    let mut series = vec![Series::new("training", TRAINING, Marks::Line(curve.training.points()))];
    let held_out = curve.held_out.points();
    if !held_out.is_empty() {
        let text = |(x, y): (f64, f64)| vec![format!("tokens: {}", compact(x)), format!("held-out {}", compact(y))];
        let point = |(x, y)| Point { x, y, interval: None, text: text((x, y)) };
        let points = held_out.into_iter().map(point).collect();
        series.push(Series::new("held-out", HELD_OUT, Marks::Points(points)));
    }
    series
}

fn density_chart(density: Option<&(u64, DensityHistogram)>, evaluated: &str) -> Chart {
    let mut bars = Vec::new();
    let mut note = format!("How often features fire {evaluated}, in half decades.");
    if let Some((tokens, density)) = density {
        let fired = density.half_decades.iter().rposition(|&count| count > 0).unwrap_or_default();
        for (bin, &count) in density.half_decades.iter().enumerate().take(fired + 1) {
            let (from, to) = (10f64.powf(-0.5 * (bin as f64 + 1.0)), 10f64.powf(-0.5 * bin as f64));
            let text =
                vec![format!("on {} to {} of the rows", compact(from), compact(to)), format!("{count} features")];
            bars.push(Bar { from, to, height: count as f64, text });
        }
        let silent = density.silent;
        note = format!("{note} After {} tokens; {silent} features never fired there.", compact(*tokens as f64));
    }
    Chart {
        name: "density".to_owned(),
        title: "Density of features".to_owned(),
        note,
        x: Axis::logarithmic("share of rows on which a feature is active"),
        y: Axis::linear("features").from(0.0),
        series: vec![Series::new("", TRAINING, Marks::Bars(bars))],
        hover: Hover::Points,
    }
}

/// The leaves of `value` by their names, numbers with all their digits.
fn table(caption: &str, value: &Value) -> Block {
    let mut leaves = Vec::new();
    if let Some(object) = value.as_object() {
        object.iter().for_each(|(key, value)| flatten(key, value, &mut leaves));
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Block::Table(Table {
        caption: caption.to_owned(),
        head: vec!["name".to_owned(), "value".to_owned()],
        rows: leaves.iter().map(|(name, value)| vec![name.clone(), text(value)]).collect(),
        folded: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(dir: &str) -> Recipe {
        let text = format!("[data]\ntrain = 'x'\n[sae]\nfeatures = 128\n[train]\nlr = 3e-3\n[run]\ndir = '{dir}'\n");
        toml::from_str(&text).expect("a recipe")
    }

    #[test]
    fn a_run_that_has_just_begun_has_a_page() {
        let progress = Progress::Training { step: 0, steps: 10 };
        let html = report("runs/<b>a", &recipe("runs/<b>a"), &Curves::new(), progress).expect("a page");
        assert!(
            html.contains("<title>Run &lt;b&gt;a</title>") && html.contains("in training: 0 of 10 steps"),
            "{html}"
        );
        assert_eq!(html.matches("nothing to show yet").count(), 6);
        assert!(html.contains("<td class=\"text\">train.lr</td><td class=\"text\">0.003</td>"), "{html}");
    }

    #[test]
    fn a_page_stays_small_however_long_the_run() {
        let mut curves = Curves::new();
        for step in 0..100_000u64 {
            let number = 1.0 / (1.0 + step as f64);
            let kind = if step % 10 == 9 { "eval" } else { "train" };
            curves.add(&serde_json::json!({
                "kind": kind, "step": step, "tokens": step * 8192, "loss": number, "l0": number, "explained_variance": number,
                "dead_fraction": number, "tokens_per_s": number, "tokens_per_s_wall": number
            }));
        }
        let progress = Progress::Training { step: 100_000, steps: 200_000 };
        let html = report("runs/long", &recipe("runs/long"), &curves, progress).expect("a page");
        assert!(html.len() < 2 << 20, "{} bytes", html.len());
    }
}

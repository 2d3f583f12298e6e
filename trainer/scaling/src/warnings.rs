//! What a reader should know before trusting laws.

use std::collections::BTreeSet;

use crate::laws::{Laws, Loss, Warning};

/// Fewer configurations than this tell five parameters badly.
const FEW_CONFIGURATIONS: usize = 15;
/// Fewer budgets than this do.
const FEW_BUDGETS: usize = 4;
/// Clusters below which a bootstrap over clusters is uncertain itself.
const FEW_CLUSTERS: usize = 10;
/// The share of a grid, in ln F, that its optimum should keep from either end.
const MARGIN: f64 = 0.25;
/// The share of replicates without a best size above which the ends of intervals are no longer what they are called.
const MOST_WITHOUT: f64 = 0.025;
/// α/β or β/α from which parabolas mislead: at 3 their extrapolated optima were up to 23 % off without noise (arXiv 2603.22339).
const UNEQUAL: f64 = 2.0;

/// All that hold of `laws`, most severe first. `several_rates` are the learning rates where the configurations have none in common.
pub fn of(laws: &Laws, several_rates: Option<usize>) -> Vec<Warning> {
    let found = [
        bound(laws),
        zero_term(laws),
        leave_out(laws),
        edge(laws),
        few_configurations(laws),
        few_clusters(laws),
        several_rates.map(learning_rates),
        other_rates(laws),
        lr_edge(laws),
        starts(laws),
        curvature(laws),
        off_centre(laws),
        unequal_exponents(laws),
        dead_rises(laws),
    ];
    found.into_iter().flatten().collect()
}

fn warning(kind: &str, text: String) -> Warning {
    Warning { kind: kind.to_owned(), text }
}

fn bound(laws: &Laws) -> Option<Warning> {
    let mut at_bounds = laws.exponents_at_bounds();
    if laws.surface.e.value <= 0.0 {
        at_bounds.insert(0, "E = 0".to_owned());
    }
    (!at_bounds.is_empty()).then(|| {
        let text = format!(
            "{} stands at a bound of the fit: these runs do not tell it, and what is predicted beyond them is a guess. Run sizes further \
             apart",
            at_bounds.join(", ")
        );
        warning("bound", text)
    })
}

/// Fits beside the surface that have no best size, and replicates that have none.
fn zero_term(laws: &Laws) -> Option<Warning> {
    let mut found = Vec::new();
    let replicates = laws.draws.len().max(1) as f64;
    let without = laws.draws.iter().filter(|draw| draw.flat().is_some()).count() as f64 / replicates;
    if without > MOST_WITHOUT {
        found.push(format!(
            "in {:.0} % of the replicates it does not fall with features or not with steps: these have no best size, and intervals of best sizes and \
             of the frontier, which leave them out, are too narrow",
            100.0 * without
        ));
    }
    if let Some(flat) = laws.leave_out.as_ref().and_then(|left| left.surface.flat()) {
        found.push(format!("without the largest budget it does not fall with {flat}"));
    }
    if let Some(flat) = laws.other_loss.flat() {
        let name = if laws.loss == Loss::Huber { "least squares" } else { "Huber's loss" };
        found.push(format!("under {name} it does not fall with {flat}, so single runs decide"));
    }
    if laws.frontier.without_e.is_none() {
        found.push("with E = 0 it does not fall with one of the two, so there is no plain power law".to_owned());
    }
    (!found.is_empty()).then(|| {
        let text = format!(
            "these runs hardly tell how the loss falls with features and steps: {}. Run sizes further apart",
            found.join("; ")
        );
        warning("zero_term", text)
    })
}

fn leave_out(laws: &Laws) -> Option<Warning> {
    let left = laws.leave_out.as_ref()?;
    let outside = left.runs.iter().filter(|run| !(run.predicted.low..=run.predicted.high).contains(&run.loss)).count();
    (outside * 4 > left.runs.len()).then(|| {
        let text = format!(
            "without the budget of {:.3e} the fit misses {outside} of its {} runs: measured minus predicted is {:+.4} on average. Do not \
             extrapolate further than that without a run in between",
            left.compute,
            left.runs.len(),
            left.bias
        );
        warning("leave_out", text)
    })
}

fn edge(laws: &Laws) -> Option<Warning> {
    let out = |parabola: &&crate::laws::Parabola| {
        parabola.at_edge || !(parabola.grid[0]..=parabola.grid[1]).contains(&parabola.surface_features)
    };
    let out: Vec<String> =
        laws.parabolas.budgets.iter().filter(out).map(|parabola| format!("{:.3e}", parabola.compute)).collect();
    (!out.is_empty()).then(|| {
        let text = format!(
            "the best F lies outside the grid at C = {}: move the grid there, since an optimum is known only between runs",
            out.join(", ")
        );
        warning("edge", text)
    })
}

fn off_centre(laws: &Laws) -> Option<Warning> {
    let off = |parabola: &&crate::laws::Parabola| {
        let [low, high] = parabola.grid.map(f64::ln);
        let place = (parabola.surface_features.ln() - low) / (high - low);
        (0.0..MARGIN).contains(&place) || (1.0 - MARGIN < place && place <= 1.0)
    };
    let off: Vec<String> =
        laws.parabolas.budgets.iter().filter(off).map(|parabola| format!("{:.3e}", parabola.compute)).collect();
    (!off.is_empty()).then(|| {
        let text = format!(
            "grids are off their centre at C = {}: the best F lies in their outer quarter, which bends parabolas (drifting centres put \
             optima 35 % off); trust the surface",
            off.join(", ")
        );
        warning("off_centre", text)
    })
}

fn few_configurations(laws: &Laws) -> Option<Warning> {
    let (configurations, budgets) = (laws.quality.configurations, laws.quality.budgets);
    (configurations < FEW_CONFIGURATIONS || budgets < FEW_BUDGETS).then(|| {
        let text = format!(
            "{configurations} configurations over {budgets} budgets are few for five parameters: {FEW_CONFIGURATIONS} over {FEW_BUDGETS} \
             or more are usual"
        );
        warning("few_configurations", text)
    })
}

fn few_clusters(laws: &Laws) -> Option<Warning> {
    let clusters = laws.quality.clusters;
    (clusters < FEW_CLUSTERS).then(|| {
        let text = format!(
            "intervals come from {clusters} clusters of runs (budget and seed), and are rough below {FEW_CLUSTERS}: run more seeds"
        );
        warning("few_clusters", text)
    })
}

fn learning_rates(rates: usize) -> Warning {
    let text = format!(
        "no learning rate was run at nearly all sizes, and of the {rates} some sizes have more than others: the surface takes the best at \
         each, so sizes with more rates look better than they are"
    );
    warning("learning_rates", text)
}

/// Sizes of which no run is behind the surface, nor behind the law of the learning rate: they had other rates than the one that nearly all had.
fn other_rates(laws: &Laws) -> Option<Warning> {
    let size = |features: f64, steps: f64| (features.to_bits(), steps.to_bits());
    let of_surface = laws.runs.iter().filter(|run| run.in_surface).map(|run| size(run.features, run.steps));
    let of_rates = laws.lr_opt.iter().flat_map(|law| &law.points).map(|point| size(point.features, point.steps));
    let used: BTreeSet<_> = of_surface.chain(of_rates).collect();
    let out: Vec<_> = laws.runs.iter().filter(|run| !used.contains(&size(run.features, run.steps))).collect();
    let sizes = out.iter().map(|run| size(run.features, run.steps)).collect::<BTreeSet<_>>().len();
    let rate = laws.runs.iter().find(|run| run.in_surface)?.lr.map_or("none".to_owned(), |lr| format!("{lr:e}"));
    let largest = out.iter().map(|run| run.compute).reduce(f64::max)?;
    let text = format!(
        "{} runs of {sizes} sizes are left out of the surface, the largest at C = {largest:.3e}: nearly all sizes were run with the learning rate \
         {rate}, and these were not. Run them with that one too, or fit without the runs of it",
        out.len()
    );
    Some(warning("other_rates", text))
}

fn lr_edge(laws: &Laws) -> Option<Warning> {
    let points = &laws.lr_opt.as_ref()?.points;
    let out = points.iter().filter(|point| point.at_edge).count();
    (out > 0).then(|| {
        let text = format!(
            "at {out} of {} sizes the best learning rate lies outside those that were tried, and the law leaves them out: try lower or \
             higher ones there",
            points.len()
        );
        warning("edge", text)
    })
}

fn starts(laws: &Laws) -> Option<Warning> {
    let (starts, agreeing) = (laws.quality.starts, laws.quality.agreeing);
    (2 * agreeing < starts).then(|| {
        let text =
            format!("only {agreeing} of {starts} starts came to the same optimum: the runs hardly tell α from β");
        warning("starts", text)
    })
}

fn curvature(laws: &Laws) -> Option<Warning> {
    let found = laws.curvature.as_ref()?;
    let bent: Vec<String> = [("ln F", found.features), ("ln S", found.steps)]
        .into_iter()
        .filter(|(_, term)| term.low > 0.0 || term.high < 0.0)
        .map(|(name, term)| format!("({name})² by {:+.2e} (95 % {:+.2e} … {:+.2e})", term.value, term.low, term.high))
        .collect();
    (!bent.is_empty()).then(|| {
        let text = format!(
            "residuals bend with {}: one power law does not hold over all these sizes, so fit the larger ones alone and compare",
            bent.join(" and ")
        );
        warning("curvature", text)
    })
}

fn unequal_exponents(laws: &Laws) -> Option<Warning> {
    let (alpha, beta) = (laws.surface.alpha.value, laws.surface.beta.value);
    let ratio = alpha / beta;
    (!(1.0 / UNEQUAL..=UNEQUAL).contains(&ratio)).then(|| {
        let text = format!(
            "α/β = {ratio:.2} is far from 1: parabolas are biased there even without noise, by a quarter at 3; trust the surface"
        );
        warning("unequal_exponents", text)
    })
}

fn dead_rises(laws: &Laws) -> Option<Warning> {
    let dead = laws.trends.iter().find(|trend| trend.name == "dead_fraction")?;
    (dead.per_features.low > 0.0).then(|| {
        let text = format!(
            "the share of dead features rises with F, by {:.3} for each doubling (95 % {:.3} … {:.3}): larger dictionaries may use less \
             of what they pay for",
            dead.per_features.value * std::f64::consts::LN_2,
            dead.per_features.low * std::f64::consts::LN_2,
            dead.per_features.high * std::f64::consts::LN_2
        );
        warning("dead_rises", text)
    })
}

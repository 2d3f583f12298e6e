//! `sae scaling fit`.

use loader::Store;
use scaling::laws::{Estimate, Loss};
use scaling::run::{Group, groups};
use scaling::{FAR, Laws, Options};
use trainer::Exit;

use super::rows::{self, Rows};
use super::{cost, written};
use crate::args::{Fit, Objective};
use crate::failure::Failure;
use crate::{laws, table};

/// Fits, writes, and says what was found.
pub fn run(args: &Fit) -> Result<(), Failure> {
    let Rows { runs, places } = match &args.runs {
        Some(path) => rows::of_table(path)?,
        None => rows::of_folders(&args.folders)?,
    };
    let out = Store::open(&args.out)?;
    let groups = groups(runs);
    let several = groups.len() > 1;
    let mut fitted = Vec::new();
    for group in &groups {
        let mut laws = law(args, group)?;
        laws.identity.recipe.extend(places.clone());
        let folder = if several { out.join(&group.name)? } else { out.clone() };
        check_free(&folder, &laws)?;
        fitted.push((group, folder, laws));
    }
    for (group, folder, laws) in fitted {
        for (name, bytes) in written::files(&laws)? {
            folder.put(&name, bytes)?;
        }
        show(&laws, &group.name);
        let at = table::quoted(&folder.url_of("laws.json"));
        table::say(match laws.exponents_at_bounds().is_empty() {
            true => format!("next: sae scaling recommend {at} {}--out recipe.toml, or --next 5", budget(&laws)),
            false => format!("next: sae scaling recommend {at} --next 5 says which further runs would tell more"),
        });
    }
    Ok(())
}

/// Refuses a folder that holds laws of other runs: the same ones, fitted in the same way, may be written again.
fn check_free(folder: &Store, laws: &Laws) -> Result<(), Failure> {
    let name = "laws.json";
    if folder.head(name)?.is_none() {
        return Ok(());
    }
    let holds = match laws::read(&folder.url_of(name)) {
        Ok(there) if there.identity.id == laws.identity.id => return Ok(()),
        Ok(_) => "other laws",
        Err(failure) if failure.exit() == Some(Exit::Storage) => return Err(failure),
        Err(_) => "a laws.json that cannot be read",
    };
    Err(Failure::arguments(format!("{} already holds {holds}: choose another --out", folder.url())))
}

/// What these laws may be asked for: ten times the largest run, and where they know no recipe one to fill in.
fn budget(laws: &Laws) -> String {
    let ten_times = laws.bands.iter().find(|band| band.compute >= 10.0 * laws.largest_compute());
    let features = laws.optimum(10.0 * laws.largest_compute()).features.value;
    let budget = match ten_times.and_then(|band| band.flops_sparse) {
        Some(flops) => format!("--flops {flops:.0e} "),
        None => format!("--features {:.0} ", features.clamp(1.0, 2_147_483_647.0)),
    };
    match laws.identity.recipe.contains_key("data.train") {
        true => budget,
        false => format!("{budget}--recipe base.toml "),
    }
}

fn law(args: &Fit, group: &Group) -> Result<Laws, Failure> {
    let refused = |error: scaling::Error| {
        let of = if group.name.is_empty() { String::new() } else { format!("{}: ", group.name) };
        Failure::data(format!("{of}{error}"))
    };
    let loss = match args.loss {
        Objective::Squares => Loss::LeastSquares,
        Objective::Huber => Loss::Huber,
    };
    let identity = scaling::run::identity(&group.runs).map_err(refused)?;
    let l0 = cost::l0_of(scaling::median(group.runs.iter().filter_map(|run| run.l0).collect()));
    let hours = |features: f64, steps: f64| cost::gpu_hours(&identity, &args.gpu, l0, features, steps);
    let options = Options {
        loss,
        replicates: args.replicates as usize,
        seed: args.seed,
        gpu: Some((args.gpu.name.to_owned(), &hours)),
    };
    scaling::fit(&group.runs, &options).map_err(refused)
}

/// The closing table, and every warning.
fn show(laws: &Laws, name: &str) {
    let title = if name.is_empty() { "scaling laws".to_owned() } else { format!("scaling laws, {name}") };
    let quality = &laws.quality;
    let mut lines = vec![
        (
            "runs",
            format!(
                "{}, of {} different sizes, at {} budgets; {} clusters",
                quality.runs, quality.configurations, quality.budgets, quality.clusters
            ),
        ),
        ("L(F, S) = E + A·F^-α + B·S^-β: E", estimate(laws.surface.e)),
        ("A", estimate(laws.surface.a)),
        ("B", estimate(laws.surface.b)),
        ("α", estimate(laws.surface.alpha)),
        ("β", estimate(laws.surface.beta)),
        ("residual standard deviation", significant(quality.residual_sd)),
        ("best F = c·C^k, C = F × steps: c", estimate(laws.features_opt.coefficient)),
        ("k", estimate(laws.features_opt.exponent)),
        ("k by IsoFLOP parabolas", laws.parabolas.features_opt.map_or("–".to_owned(), |law| estimate(law.exponent))),
        ("best steps = c·C^k: k", estimate(laws.steps_opt.exponent)),
        ("least loss = E + K·C^-γ: -γ", estimate(laws.frontier.exponent)),
        ("-γ with E = 0", laws.frontier.without_e.map_or("–".to_owned(), |law| estimate(law.exponent))),
    ];
    lines.push(match &laws.lr_opt {
        Some(law) => ("best lr = c·C^k: k", estimate(law.exponent)),
        None => ("best lr", "not swept at three sizes".to_owned()),
    });
    if let Some(left) = &laws.leave_out {
        lines.push((
            "largest budget, from the others",
            format!("off by {:+.4} on average, {} in root mean square", left.bias, significant(left.error)),
        ));
    }
    let far = laws.optimum(FAR * laws.largest_compute());
    lines.push(("loss at 100 × the largest C", estimate(far.loss)));
    lines.push(("optimiser", format!("{} of {} starts agree", quality.agreeing, quality.starts)));
    table::print(&title, &lines);
    for warning in &laws.warnings {
        table::say(format!("warning ({}): {}", warning.kind, warning.text));
    }
}

/// A value with its 95 % interval.
pub fn estimate(estimate: Estimate) -> String {
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(significant);
    format!("{value} (95 %: {low} … {high})")
}

/// Five digits; the files have all.
pub fn significant(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.4e}");
    }
    let whole = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    format!("{value:.*}", (4 - whole).clamp(0, 8) as usize)
}

//! `sae train`.

mod dry_run;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::HumanCount;
use kernels::Device;
use kernels::mesh::Axes;
use loader::{Store, patience};
use trainer::Exit;
use trainer::meeting;
use trainer::metrics::Metrics;
use trainer::note::{self, Note};
use trainer::recipe::Recipe;
use trainer::run_dir;
use trainer::summary::{EvaluatedOn, Summary};
use trainer::synthesis;
use trainer::train::{Event, Start, train};

use crate::args::{COMMIT, Train};
use crate::device::{self, Opened};
use crate::failure::Failure;
use crate::progress::{Bar, Measured};
use crate::world::{self, World};
use crate::{job, parent, recipes, remedy, shards, signals, table};

/// Trains, resumes or only plans.
pub fn run(args: &Train) -> Result<(), Failure> {
    let environment = world::environment();
    let world = World::new(&args.world, &environment)?;
    if let Some(told) = world::unused_tasks(&world, &environment) {
        tracing::warn!("{told}");
    }
    if let Some(told) = world::shell_in_step(&world, &environment) {
        return Err(Failure::arguments(told));
    }
    let launched = parent::bind()?;
    // What starts a job's ranks is not what this process was started by.
    if world.ranks == 1 && !launched {
        remedy::remember(args.run.starting());
    }
    let recipe = recipes::read(&args.run.recipe, &args.run.set)?;
    let store = Store::open(&recipe.run.dir)?;
    let axes = job::join(&store, &world, args.run.mesh, &recipe, job::MEETING)?;
    if args.dry_run && world.ranks > 1 {
        leave_no_meeting(&store, &world, &axes)?;
    }
    let told = axes.all.clone();
    let opened = device::open(args.run.device, &recipe.train, axes, world.local());
    let done = opened.and_then(|opened| match opened {
        Opened::Cpu(device) => run_on(&device, args, (&recipe, &store), (launched, world.local_ranks)),
        Opened::Cuda(device) => run_on(&device, args, (&recipe, &store), (launched, world.local_ranks)),
    });
    // The others wait for this rank: they hear why it is gone. When one was asked to stop, all do.
    let done = done.inspect_err(|failure| {
        if !failure.is_interruption() {
            told.abort(failure.of(told.index()));
        }
    });
    // Under a launcher a cause is said once: by the rank that failed, or by the launcher, which reads its note.
    done.map_err(|failure| match launched && (failure.is_of_peer || has_left_word(&store, world.rank, &failure)) {
        true => failure.told(),
        false => failure,
    })
}

/// Whether a rank's note says how it failed. A store that does not answer is not asked again.
fn has_left_word(run: &Store, rank: usize, failure: &Failure) -> bool {
    // Where nothing can be written, a note with the same words is of an earlier start.
    if matches!(failure.exit(), Some(Exit::Storage | Exit::CannotWrite)) {
        return false;
    }
    let note = run.get(&note::name(rank)).ok().and_then(|note| serde_json::from_slice::<Note>(&note).ok());
    note.is_some_and(|note| note.error == failure.message())
}

/// A dry run leaves nothing, not even where its ranks have met. None goes on before all have come, nor before all have tidied up.
fn leave_no_meeting(store: &Store, world: &World, axes: &Axes) -> Result<(), Failure> {
    axes.all.gather(&[])?;
    let forgotten = meeting::forget(store, &world.attempt, world.rank);
    axes.all.gather(&[])?;
    Ok(forgotten?)
}

/// With the run's folder, whether a launcher passes signals on, and how many ranks share this machine's memory.
fn run_on(
    device: &impl Device,
    args: &Train,
    (recipe, store): (&Recipe, &Store),
    (launched, host_ranks): (bool, usize),
) -> Result<(), Failure> {
    let ranks = &device.axes().all;
    let first = ranks.index() == 0;
    if args.dry_run {
        return if first { dry_run::run((recipe, store), resumes(args, store)?, device, host_ranks) } else { Ok(()) };
    }
    let stop = signals::stop_on_signals(launched)?;
    // What the first rank finds and makes holds for all; they wait for it here.
    let mut resume = 0;
    if first {
        resume = u8::from(resumes(args, store)?);
        let making = synthesis::to_make(recipe)?;
        if !making.is_empty() {
            shards::check((recipe, store), resume == 1, device, host_ranks, &making)?;
            shards::make(recipe, &making, &stop)?;
        }
    }
    let resume = ranks.gather(&[resume])?[0] == [1];
    let mut display = Display::default();
    let begun = Arc::new(AtomicBool::new(false));
    if ranks.size() == 1 {
        // Several stop together, at a roll call.
        leave_before_the_start(&stop, &begun)?;
    }
    let watch: Box<dyn FnMut(Event<'_>) + Send> = Box::new(|event| {
        begun.store(true, Ordering::Relaxed);
        if let Event::Start { .. } = event {
            patience::set(patience::now().max(patience::IN_A_RUN));
        }
        if first {
            display.show(event);
        }
    });
    let summary = train(
        device,
        recipe,
        Start { store, resume, commit: COMMIT, stop: &stop, host_ranks, words: remedy::words, watch },
    )?;
    if first {
        if let Some(bar) = display.training {
            bar.finish();
        }
        closing_table(recipe, &summary);
    }
    Ok(())
}

/// Whether the run goes on from a checkpoint.
fn resumes(args: &Train, store: &Store) -> Result<bool, Failure> {
    Ok(args.run.resume || (args.run.resume_or_start && run_dir::holds_a_run(store)?))
}

/// Ends one that is asked to stop before its run has begun: what opens data may wait for a store for minutes. One that has begun saves.
fn leave_before_the_start(stop: &Arc<AtomicBool>, begun: &Arc<AtomicBool>) -> Result<(), Failure> {
    let (stop, begun) = (Arc::clone(stop), Arc::clone(begun));
    let watch = move || {
        while !begun.load(Ordering::Relaxed) {
            if stop.load(Ordering::Relaxed) {
                tracing::warn!("stopped before the run began: start again in the same way, or with --resume-or-start");
                std::process::exit(Exit::Interrupted.code().into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let thread = std::thread::Builder::new().name("start".to_owned()).spawn(watch);
    thread.map(|_| ()).map_err(|error| kernels::Error::threads(error).into())
}

/// What is shown of a run.
#[derive(Default)]
struct Display {
    training: Option<Bar>,
    evaluating: Option<Bar>,
    /// Whether there was a metrics line: from the first one on no single step's are shown, so that all is over the same rows.
    has_line: bool,
}

impl Display {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Start { tokens, rows, .. } => self.training = Some(Bar::new("training", tokens, rows)),
            Event::Step { step, tokens, loss, l0 } => {
                if let Some(bar) = &mut self.training {
                    if !self.has_line {
                        let (explained_variance, dead_fraction, stall_share) = (None, None, None);
                        bar.measured(Measured {
                            step: step - 1,
                            loss,
                            l0,
                            explained_variance,
                            dead_fraction,
                            stall_share,
                        });
                    }
                    bar.set(tokens);
                }
            }
            Event::Line(line) => {
                self.has_line = true;
                if let Some(bar) = &mut self.training {
                    bar.measured(Measured {
                        step: line.step,
                        loss: line.metrics.loss,
                        l0: line.metrics.l0,
                        explained_variance: line.metrics.explained_variance,
                        dead_fraction: Some(line.dead_fraction),
                        stall_share: Some(line.stall_share),
                    });
                }
            }
            Event::Evaluating(done, rows) => {
                self.evaluating.get_or_insert_with(|| Bar::new("evaluating", 0, rows)).set(done);
            }
            Event::Evaluated(line) => {
                if let Some(bar) = self.evaluating.take() {
                    bar.finish();
                }
                let Metrics { loss, mse, l1_norm, l0, explained_variance, .. } = line.metrics;
                let (step, rows) = (line.step, line.rows);
                tracing::info!(step, rows, loss, mse, l1_norm, l0, explained_variance, "held-out rows measured");
            }
            Event::Saved(_) | Event::Done | Event::NotBegun => {}
        }
    }
}

fn closing_table(recipe: &Recipe, summary: &Summary) {
    let evaluated_on = match summary.evaluated_on {
        EvaluatedOn::Eval => "data.eval".to_owned(),
        EvaluatedOn::LastTrainingRows => "the last training rows".to_owned(),
    };
    let mut rows = vec![("evaluated on", evaluated_on)];
    if let Some(metrics) = &summary.metrics {
        rows.extend([
            ("loss", table::number(metrics.loss)),
            ("explained variance", table::percent(metrics.explained_variance)),
            ("explained variance, mean of rows", table::percent(metrics.explained_variance_rows)),
            ("normalised MSE", metrics.normalized_mse.map_or("–".into(), table::number)),
            ("L0", table::number(metrics.l0)),
        ]);
    }
    let window = HumanCount(summary.dead_window);
    rows.push((
        "dead features",
        format!("{} (silent over {window} rows)", table::percent(Some(summary.dead_fraction))),
    ));
    let silent = summary.density.silent as f64 / recipe.sae.features as f64;
    rows.push(("silent on the rows evaluated", table::percent(Some(silent))));
    if summary.recovered.is_some() {
        rows.push(("true directions recovered", table::percent(summary.recovered)));
    }
    rows.extend([
        ("tokens", HumanCount(summary.tokens).to_string()),
        ("tokens/s", HumanCount(summary.tokens_per_s as u64).to_string()),
        ("time in steps", format!("{:.1} s", summary.account.step_s)),
        ("time by the clock", format!("{:.1} s", summary.account.wall_s)),
        ("waiting for data", table::percent(Some(summary.stall_s / summary.account.step_s))),
    ]);
    let dir = &recipe.run.dir;
    table::print(&format!("{dir}/summary.json"), &rows);
    if let Some(note) = shrinkage(summary) {
        table::say(note);
    }
    warn_of_collapse(summary);
    table::say(format!("a browser shows its curves: {}", table::quoted(&format!("{dir}/report.html"))));
    let (run, out) = (table::quoted(dir), table::quoted(&format!("{dir}/saelens")));
    table::say(format!("next: sae export {run} --format saelens --out {out}"));
}

/// Says when the dictionary is of no use: it explains nothing, or hardly a feature fires.
fn warn_of_collapse(summary: &Summary) {
    let Some(metrics) = &summary.metrics else { return };
    let l0 = metrics.l0;
    match metrics.explained_variance {
        Some(explained_variance) if explained_variance <= 0.0 => tracing::warn!(
            explained_variance,
            l0,
            "the dictionary explains nothing, with {l0:.2} active features a row: lower train.l1 or train.lr"
        ),
        _ if l0 < 1.0 => {
            tracing::warn!(l0, "{l0:.2} features fire on a row on average, fewer than one: lower train.l1");
        }
        _ => {}
    }
}

/// Share of the true directions from which on it is the penalty that leaves variance unexplained, and no direction that is missing.
const FOUND: f64 = 0.9;

/// How far the price may lie from what is left: many features that fire at once along one direction share its price.
const AGREES: std::ops::RangeInclusive<f64> = 0.5..=1.5;

/// Why rows that are known to be sums of a few directions are not explained altogether. Along a direction of its own a feature gives
/// `c` for a length of `s` where `(s − c)² + λ·c` is least: `c = s − λ/2`. So each costs `(λ/2)²` of the squared error.
fn shrinkage(summary: &Summary) -> Option<String> {
    summary.recovered.filter(|&recovered| recovered >= FOUND)?;
    let metrics = summary.metrics.as_ref()?;
    let (unexplained, half) = (1.0 - metrics.explained_variance?, summary.account.lambda / 2.0);
    let (variance, price) = (metrics.mse / unexplained, metrics.l0 * half * half);
    if !AGREES.contains(&(price / metrics.mse)) {
        return None;
    }
    Some(format!(
        "The directions are found; what is not explained, {}, is the price of the L1 penalty. It takes λ/2 = {half}\n\
         off the length of each active feature: for {:.1} features a row, at right angles, L0·λ²/4 = {:.1} of a variance of {variance:.1}.",
        table::percent(Some(unexplained)),
        metrics.l0,
        price,
    ))
}

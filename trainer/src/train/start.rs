//! The start of a run: memory, weights made or read, and what lies in the run's folder.

use std::rc::Rc;
use std::time::Instant;

use kernels::mesh::{Axes, Place};
use kernels::{Device, Dictionary, Sums, Training};
use loader::{Cursor, Positions, Store};

use super::check::{check_eval, warn_of_few_steps};
use super::clocks::Clocks;
use super::closing::Closing;
use super::evaluation::Evaluation;
use super::flight::Flight;
use super::run::{Event, Run, Scribe, Start};
use super::saver::Saver;
use super::shared::Shared;
use crate::checkpoint::{Found, LeftOut};
use crate::data::Data;
use crate::data::calibrate;
use crate::data::survey::Survey;
use crate::estimate::plan;
use crate::init::Source;
use crate::ranks::together::once_all;
use crate::recipe::{BiasInit, Recipe};
use crate::report::hparams::HParams;
use crate::report::journal::Journal;
use crate::run_dir::RunDir;
use crate::{Error, checkpoint, init};

impl<'a, D: Device> Run<'a, D> {
    /// Takes memory and makes or loads the weights.
    pub(super) fn start(
        device: &'a D,
        recipe: &'a Recipe,
        data: &'a Data,
        run_dir: Option<&'a RunDir>,
        mut start: Start<'a>,
        shared: &Rc<Shared<D>>,
        began: Instant,
    ) -> Result<Self, Error> {
        let (store, axes) = (start.store, device.axes());
        let width = data.train.width();
        let schedule = data.schedule(&recipe.train);
        let shape = plan::shape(recipe, data.extent(), axes.place);
        let settles = plan::settles(recipe, data.eval.is_some() || shared.truth.is_some());
        let mut sae = device.training(shape, plan::adam_mode(recipe))?;
        let settled = settles.then(|| device.dictionary(shape)).transpose()?;
        let mut tally = device.tally(width, shape.features)?;
        let resumed = if start.resume { resume(recipe, data, store, axes, &mut sae)? } else { None };
        let (found, (state, positions)) = match resumed {
            Some((found, loaded)) => (Some(found), loaded),
            None => {
                let survey = shared.survey(data, axes.all.index() == 0)?;
                let state = first_state(recipe, data, axes.place, survey, &mut sae)?;
                (None, (state, data.positions(axes.place, &Cursor::default())?))
            }
        };
        device.put_sums(&mut tally, &state.tally);
        if let Some(eval) = &data.eval {
            // What the evaluation at the end would be refused for is better known now.
            let filter = recipe.data.filter.resolve(state.norm_median)?;
            drop(data.reading.eval_stream(eval, filter.clone(), axes.place, Some(1))?);
            if found.is_none() && axes.all.index() == 0 {
                shared.look_at_held_out(data, &filter)?;
            }
        }
        let scribe = run_dir.map(|run_dir| {
            run_dir.begin(recipe)?;
            let hparams = HParams::of(recipe, width);
            let journal = Journal::open(run_dir.local(), state.step, recipe.log.rows, &hparams)?;
            Ok(Scribe { run_dir, journal })
        });
        let scribe = once_all(&axes.all, "starting", scribe.transpose())?;
        let known = match &found {
            Some(found) => checkpoint::Known::until(store, found)?,
            None => checkpoint::Known::default(),
        };
        // Evaluations go by the checkpoint's list, so a longer one makes another checkpoint even where no step follows.
        let is_kept = |found: &&Found| found.manifest.recipe.data.eval_skip == recipe.data.eval_skip;
        let saver = Saver::new(recipe.checkpoint.every, known, found.as_ref().filter(is_kept));
        let from = found.as_ref().map(|found| found.folder.as_str());
        let (step, steps, rows) = (state.step, schedule.steps(), data.rows);
        if scribe.is_some() {
            warn_of_few_steps(recipe, data.extent());
            let (device, mesh) = (device.describe(), axes.place.mesh);
            let begins =
                if step < steps { "training begins" } else { "nothing is left to train: the run is measured again" };
            tracing::info!(step, steps, total_rows = rows, from, device, %mesh, "{begins}");
        }
        (start.watch)(Event::Start { step, steps, tokens: state.tokens, rows, from });
        Ok(Run {
            device,
            recipe,
            data,
            schedule,
            sae,
            tally,
            scribe,
            shared: Rc::clone(shared),
            positions,
            flight: Flight::new(),
            saver,
            evaluation: Evaluation::new(settled),
            closing: Closing::of(data),
            clocks: Clocks::start(began, &state, device),
            state,
            start,
            failed_during: None,
        })
    }
}

/// The state before the first step: weights made or read.
fn first_state(
    recipe: &Recipe,
    data: &Data,
    place: Place,
    survey: &Survey,
    sae: &mut impl Dictionary,
) -> Result<checkpoint::State, Error> {
    let (width, features) = (data.train.width(), recipe.sae.features);
    let shard = place.shard(features);
    let scale = survey.scale;
    // Without biases about half of the features fire, and what a file brings is not known: both start dense.
    let mut density = (1, 1);
    match Source::open(recipe, width)? {
        Some(source) => {
            init::from_source(sae, shard, &source, scale)?;
            if place.rank == 0 {
                tracing::info!("starting from {}", source.describe());
            }
        }
        None => init::random(sae, shard, recipe.train.seed, recipe.sae.decoder_norm),
    }
    if recipe.sae.bias_init == BiasInit::Calibrated {
        calibrate::calibrate(sae, data, (scale, &survey.filter), &recipe.sae)?;
        density = (recipe.sae.bias_init_l0.round() as u64, features as u64);
    }
    let sums = Sums::new(width, place.owned(features).len());
    Ok(checkpoint::State {
        step: 0,
        steps: data.schedule(&recipe.train).steps(),
        tokens: 0,
        left_out: LeftOut::default(),
        scale,
        norm_median: survey.norm_median,
        density: [density; 2],
        gradient_norm: 0.0,
        tally: sums.clone(),
        window: sums.clone(),
        closing: sums,
        closing_open: false,
        held_out: None,
        eval: data.eval_identity(),
        source: data.train.rows_source().cloned(),
        active: Some(0),
        step_s: 0.0,
        wall_s: 0.0,
        stall_s: 0.0,
    })
}

/// Refuses a checkpoint whose weights and rows are not those of one step: somebody has changed it.
fn check_cursor(found: &Found) -> Result<(), Error> {
    let (step, cursor) = (found.manifest.step, found.manifest.cursor.step);
    if cursor == step {
        return Ok(());
    }
    Err(Error::Data(format!(
        "{}/manifest.json: damaged: the weights are those after {step} steps, and the rows go on after {cursor}: take its COMMIT away, and the \
         run goes on from the checkpoint before",
        found.folder
    )))
}

/// A checkpoint, and what it was loaded into besides the dictionary.
type Resumed = (Found, (checkpoint::State, Positions));

/// Loads the newest intact checkpoint, once nothing speaks against going on from it with this recipe and this data. One that any rank
/// finds damaged is passed over by all.
fn resume(
    recipe: &Recipe,
    data: &Data,
    store: &Store,
    axes: &Axes,
    sae: &mut impl Training,
) -> Result<Option<Resumed>, Error> {
    let resumed = checkpoint::newest_with(store, |found| {
        // config.toml is the recipe of the first start; rows skipped since then stand in the checkpoint.
        recipe.check_resumes(&found.manifest.recipe)?;
        check_eval(found.manifest.eval.as_deref(), data.eval.as_ref())?;
        let positions = data.positions(axes.place, &found.manifest.cursor)?;
        check_cursor(found)?;
        let started = Instant::now();
        let loaded = checkpoint::load(store, found, axes, sae);
        let state = once_all(&axes.all, "loading a checkpoint", loaded)?;
        if axes.all.index() == 0 {
            let bytes = checkpoint::bytes(found.manifest.width, found.manifest.features);
            let loaded_s = started.elapsed().as_secs_f64();
            tracing::info!(folder = found.folder, loaded_s, bytes, commit = found.manifest.commit, "checkpoint loaded");
        }
        Ok((state, positions))
    })?;
    if resumed.is_none() {
        tracing::warn!("the run has no committed checkpoint: it starts again at step 0");
    }
    Ok(resumed)
}

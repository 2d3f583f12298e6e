//! Whether a run could begin, and what is to be said before it does. Nothing is written.

use kernels::Device;
use loader::synth::Spec;
use loader::{Cursor, Dataset, Store, sample};

use crate::checkpoint::Found;
use crate::data::survey;
use crate::data::survey::Survey;
use crate::data::{Data, Extent};
use crate::estimate::plan;
use crate::estimate::plan::DataSize;
use crate::init::Source;
use crate::recipe::Recipe;
use crate::{Error, checkpoint};

/// Steps of which λ's warm-up, the decay of the learning rate and Adam's means have a few each.
const FEW_STEPS: u64 = 100;

/// Rows that are read to see that they can be.
const FEW_ROWS: usize = 64;

/// Where a run begins.
#[derive(Debug)]
pub enum Beginning {
    /// At its first step, with what it finds in its rows.
    New(Survey),
    /// Behind a checkpoint, which says that.
    Behind(Box<Found>),
}

/// Looks at whatever a start would be refused for, besides what opening the data and planning have looked at; `kept` is the folder of a
/// run that goes on.
///
/// # Errors
/// Those of the start.
pub fn check(device: &impl Device, recipe: &Recipe, data: &Data, kept: Option<&Store>) -> Result<Beginning, Error> {
    let place = device.axes().place;
    warn_of_few_steps(recipe, data.extent());
    let found = kept.map(checkpoint::newest).transpose()?.flatten();
    let (beginning, filter) = match found {
        Some(found) => {
            let manifest = &found.manifest;
            recipe.check_resumes(&manifest.recipe)?;
            check_eval(manifest.eval.as_deref(), data.eval.as_ref())?;
            let filter = recipe.data.filter.resolve(manifest.norm_median)?;
            (Beginning::Behind(Box::new(found)), filter)
        }
        None => {
            let survey = Survey::of(data)?;
            Source::open(recipe, data.train.width())?;
            let filter = survey.filter.clone();
            (Beginning::New(survey), filter)
        }
    };
    if let Some(eval) = &data.eval {
        drop(data.reading.eval_stream(eval, filter.clone(), place, Some(1))?);
    }
    survey::look_at_held_out(data, &filter)?;
    // That rows can be read, and with them the columns that a filter goes by.
    sample(&data.train, FEW_ROWS, recipe.data.seed, &data.skip()?, &filter)?;
    let from = match &beginning {
        Beginning::New(_) => Cursor::default(),
        Beginning::Behind(found) => found.manifest.cursor.clone(),
    };
    let steps = data.schedule(&recipe.train).steps();
    drop(data.train_stream(filter, place, from, steps)?);
    Ok(beginning)
}

/// Looks at what can be seen before the rows of `spec` are made, on a host that so many ranks share: whether the dictionary fits, its mesh,
/// and weights to start from.
///
/// # Errors
/// Those of the start.
pub fn check_before_synthesis(
    device: &impl Device,
    recipe: &Recipe,
    spec: &Spec,
    host_ranks: usize,
) -> Result<(), Error> {
    let place = device.axes().place;
    plan::check_fits(device, recipe, &DataSize::of_synthetic(recipe, spec)?, place, host_ranks)?;
    Source::open(recipe, spec.width)?;
    Ok(())
}

/// Says that a run is too short to tell anything.
pub fn warn_of_few_steps(recipe: &Recipe, extent: Extent) {
    let (steps, batch) = (extent.schedule(&recipe.train).steps(), recipe.train.batch);
    if steps < FEW_STEPS {
        tracing::warn!(
            steps,
            batch,
            "{} rows in batches of {batch} give {steps} of the {FEW_STEPS} steps below which a dictionary has hardly begun to learn: lower \
             train.batch, or train on more rows",
            extent.rows
        );
    }
}

/// Held-out rows may lie elsewhere when a run is resumed, but must be the same: losses on others do not compare.
pub(super) fn check_eval(then: Option<&str>, eval: Option<&Dataset>) -> Result<(), Error> {
    let now = eval.map(Dataset::identity);
    let now = now.as_deref();
    if then == now {
        return Ok(());
    }
    let if_copied = eval.filter(|_| then.is_some()).and_then(Dataset::if_copied).map(|remedy| format!("; {remedy}"));
    let name = |identity: Option<&str>| identity.map_or("none".to_owned(), |hash| format!("those of identity {hash}"));
    let problem = format!(
        "the run cannot be resumed with other held-out rows: it has {}, and data.eval names {}; set data.eval back",
        name(then),
        name(now)
    );
    Err(Error::OtherHeldOut { problem, if_copied: if_copied.unwrap_or_default() })
}

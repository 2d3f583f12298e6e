//! Whether a run could begin, and what is to be said before it does. Nothing is written.

use kernels::Device;
use loader::synth::Spec;
use loader::{Cursor, Store, sample};

use super::start::check_eval;
use crate::data::{self, Data, Extent};
use crate::init::Source;
use crate::recipe::Recipe;
use crate::survey::Survey;
use crate::{Error, checkpoint, communication, plan, survey};

/// Steps of which λ's warm-up, the decay of the learning rate and Adam's means have a few each.
const FEW_STEPS: u64 = 100;

/// Rows that are read to see that they can be.
const FEW_ROWS: usize = 64;

/// Looks at whatever a start would be refused for, besides what opening the data and planning have looked at; `kept` is the folder of a
/// run that goes on. Gives what a run that begins finds in its rows: one that goes on has it from its checkpoint.
///
/// # Errors
/// Those of the start.
pub fn check(
    device: &impl Device,
    recipe: &Recipe,
    data: &Data,
    kept: Option<&Store>,
) -> Result<Option<Survey>, Error> {
    let place = device.axes().place;
    warn_of_few_steps(recipe, data.extent());
    let found = kept.map(checkpoint::newest).transpose()?.flatten().map(|found| found.manifest);
    let (survey, filter) = match &found {
        Some(manifest) => {
            recipe.check_resumes(&manifest.recipe)?;
            check_eval(manifest.eval.as_deref(), data.eval.as_ref())?;
            (None, recipe.data.filter.resolve(manifest.norm_median)?)
        }
        None => {
            let survey = Survey::of(data, recipe)?;
            Source::open(recipe, data.train.width())?;
            let filter = survey.filter.clone();
            (Some(survey), filter)
        }
    };
    if let Some(eval) = &data.eval {
        drop(data::eval_stream(eval, recipe, filter.clone(), place, Some(1))?);
    }
    survey::look_at_held_out(data, recipe, &filter)?;
    // That rows can be read, and with them the columns that a filter goes by.
    sample(&data.train, FEW_ROWS, recipe.data.seed, &data.skip(recipe)?, &filter)?;
    let from = found.map_or_else(Cursor::default, |manifest| manifest.cursor);
    drop(data.train_stream(recipe, filter, place, from)?);
    Ok(survey)
}

/// Looks at what can be seen before the rows of `spec` are made: whether the dictionary fits, its mesh, weights to start from, and
/// whether there are steps enough.
///
/// # Errors
/// Those of the start.
pub fn check_before_synthesis(device: &impl Device, recipe: &Recipe, spec: &Spec) -> Result<(), Error> {
    let place = device.axes().place;
    let extent = Extent::of_synthetic(recipe, spec)?;
    communication::check(recipe, place.mesh)?;
    let shape = plan::shape(recipe, extent, place);
    // Synthetic rows come with their true directions, which the weights are compared with.
    plan::check_room(device, shape, plan::settled(shape, true))?;
    warn_of_few_steps(recipe, extent);
    Source::open(recipe, spec.width)?;
    Ok(())
}

/// Says that a run is too short to tell anything.
pub(super) fn warn_of_few_steps(recipe: &Recipe, extent: Extent) {
    let (steps, batch) = (extent.schedule(recipe).steps(), recipe.train.batch);
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

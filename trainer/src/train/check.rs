//! Whether a run could begin, and what is to be said before it does. Nothing is written.

use kernels::Device;
use loader::{Cursor, SkipList, Store, sample};

use super::start::check_eval;
use crate::data::{self, Data};
use crate::init::Source;
use crate::recipe::Recipe;
use crate::survey::Survey;
use crate::{Error, checkpoint};

/// Steps of which λ's warm-up, the decay of the learning rate and Adam's means have a few each.
const FEW_STEPS: u64 = 100;

/// Rows that are read to see that they can be.
const FEW_ROWS: usize = 64;

/// Looks at whatever a start would be refused for, besides what opening the data, planning and the survey have looked at; `kept` is the
/// folder of a run that goes on.
///
/// # Errors
/// Those of the start.
pub fn check(
    device: &impl Device,
    recipe: &Recipe,
    (data, survey): (&Data, &Survey),
    kept: Option<&Store>,
) -> Result<(), Error> {
    let place = device.axes().place;
    warn_of_few_steps(recipe, data);
    let found = kept.map(checkpoint::newest).transpose()?.flatten().map(|found| found.manifest);
    if found.is_none() {
        Source::open(recipe, data.train.width())?;
    }
    let filter = match &found {
        Some(manifest) => {
            recipe.check_resumes(&manifest.recipe)?;
            check_eval(manifest.eval.as_deref(), data.eval.as_ref())?;
            recipe.data.filter.resolve(manifest.norm_median)?
        }
        None => survey.filter.clone(),
    };
    if let Some(eval) = &data.eval {
        drop(data::eval_stream(eval, recipe, filter.clone(), place, Some(1))?);
        sample(eval, FEW_ROWS, recipe.data.seed, &SkipList::default(), &filter)?;
    }
    // That rows can be read, and with them the columns that a filter goes by.
    sample(&data.train, FEW_ROWS, recipe.data.seed, &data.skip(recipe)?, &filter)?;
    let from = found.map_or_else(Cursor::default, |manifest| manifest.cursor);
    drop(data.train_stream(recipe, filter, place, from)?);
    Ok(())
}

/// Says that a run is too short to tell anything.
pub(super) fn warn_of_few_steps(recipe: &Recipe, data: &Data) {
    let (steps, batch) = (data.schedule(recipe).steps(), recipe.train.batch);
    if steps < FEW_STEPS {
        tracing::warn!(
            steps,
            batch,
            "{} rows in batches of {batch} give {steps} of the {FEW_STEPS} steps below which a dictionary has hardly begun to learn: lower \
             train.batch, or train on more rows",
            data.rows
        );
    }
}

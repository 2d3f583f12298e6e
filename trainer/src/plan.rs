//! What a run will read, hold in memory and write: known before it starts, because a step allocates nothing.

use loader::Stream;

use crate::Error;
use crate::checkpoint;
use crate::data::{self, Data};
use crate::recipe::{Adam, Recipe, Scale};

/// The plan of a run on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows of the run.
    pub rows: u64,
    /// `D`.
    pub width: usize,
    /// Stored format of the rows.
    pub dtype: &'static str,
    /// The order, in words.
    pub order: String,
    /// Steps.
    pub steps: u64,
    /// Trained numbers.
    pub parameters: u64,
    /// Bytes of rows read from storage.
    pub bytes_read: u64,
    /// Bytes of weights, moments and the encoder's bf16 copy.
    pub weight_bytes: u64,
    /// Bytes of a batch, its lists, and the gradient, at most: half of all pairs active, every row touched.
    pub step_bytes: u64,
    /// Bytes of rows held ahead of the step.
    pub stream_bytes: u64,
    /// Bytes held besides, for a while: the sample behind `data.scale`, an evaluation, the making of a checkpoint,
    /// whichever takes most.
    pub passing_bytes: u64,
    /// Bytes of a checkpoint.
    pub checkpoint_bytes: u64,
}

impl Plan {
    /// Of `recipe` on opened data.
    ///
    /// # Errors
    /// [`Error::Recipe`] and those of the loader, when the run could not start.
    pub fn of(recipe: &Recipe, data: &Data) -> Result<Plan, Error> {
        let (width, features) = (data.train.width() as u64, recipe.sae.features as u64);
        let batch = (recipe.train.batch as u64).min(data.rows);
        let parameters = 2 * width * features + features + width;
        // x, its bf16 copy, x̂ and g; rows as stored; the gradient of every row; dense activations up to their bound.
        let batch_bytes = batch * width * (3 * 4 + 2) + batch * data.train.row_bytes() as u64;
        let dense = (4 * batch * features).min(recipe.train.dense_bytes);
        let stream_bytes = Stream::bytes_at_most(&data.train, &data.train_options(recipe)?)?;
        Ok(Plan {
            rows: data.rows,
            width: width as usize,
            dtype: data.train.dtype().name(),
            order: match data.order {
                loader::Order::Sequential => "sequential".into(),
                loader::Order::Striped => "striped".into(),
                loader::Order::Direct { window_bytes } => format!("direct, window of {window_bytes} bytes"),
            },
            steps: data.schedule(recipe).steps(),
            parameters,
            bytes_read: data.rows * data.train.row_bytes() as u64,
            weight_bytes: 3 * 4 * parameters + 2 * width * features,
            step_bytes: batch_bytes + 4 * parameters + dense,
            stream_bytes,
            passing_bytes: passing_bytes(recipe, data, parameters)?,
            checkpoint_bytes: checkpoint::bytes(width as usize, features as usize),
        })
    }

    /// Bytes held at once, at most, besides the program itself.
    pub fn memory_bytes(&self) -> u64 {
        self.weight_bytes + self.step_bytes + self.stream_bytes + self.passing_bytes
    }
}

fn passing_bytes(recipe: &Recipe, data: &Data, parameters: u64) -> Result<u64, Error> {
    // Drawn place by place, then put together.
    let sample = match recipe.data.scale {
        Scale::Auto => 2 * 4 * (data::SAMPLE_ROWS as u64).min(data.rows) * data.train.width() as u64,
        Scale::Fixed(_) => 0,
    };
    let evaluation = match &data.eval {
        Some(eval) => {
            // Of `catchup` it looks at a copy on which nothing is owed.
            let settled = if recipe.train.adam == Adam::Catchup { 4 * parameters } else { 0 };
            settled + Stream::bytes_at_most(eval, &data::eval_options(recipe, None))?
        }
        None => 0,
    };
    let saving = checkpoint::staging_bytes(data.train.width(), recipe.sae.features);
    Ok(sample.max(evaluation).max(saving))
}

//! What a run will read, hold in memory and write: known before it starts, because a step allocates nothing but
//! lists of what is active.

use kernels::mesh::Place;
use kernels::{AdamMode, Bytes, Device, Purpose, Shape};
use loader::synth::Spec;
use loader::{Order, Stream, memory};

use crate::data::survey;
use crate::data::{Data, Extent};
use crate::estimate::room::Room;
use crate::ranks::communication;
use crate::ranks::roll_call::most_rows;
use crate::recipe::{Adam, Recipe};
use crate::report::recovery::Truth;
use crate::{Error, checkpoint, init};

/// What a plan has to know of the rows: of those that are there, or of those that are yet to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSize {
    /// How large they are.
    pub extent: Extent,
    /// Bytes of training rows held ahead, at most.
    pub stream_bytes: u64,
    /// Bytes that an evaluation holds ahead, at most.
    pub evaluation_bytes: u64,
    /// Whether the directions are known that they were made of, and the weights are compared with.
    pub known_directions: bool,
}

impl DataSize {
    /// Of opened data.
    ///
    /// # Errors
    /// Those of the loader, when the order needs more memory than there is or is allowed.
    pub fn of(recipe: &Recipe, data: &Data) -> Result<DataSize, Error> {
        let evaluation_bytes = match &data.eval {
            Some(eval) => Stream::bytes_at_most(eval, &data.reading.eval_options(None))?,
            None => 0,
        };
        // Held-out rows have the weights looked at anyway.
        let known_directions = data.eval.is_none()
            && Truth::beside(&recipe.data.train)?.is_some_and(|truth| truth.width == data.train.width());
        Ok(DataSize {
            extent: data.extent(),
            stream_bytes: Stream::bytes_at_most(&data.train, &data.train_options()?)?,
            evaluation_bytes,
            known_directions,
        })
    }

    /// Of those that [`crate::data::synthesis`] makes of `spec`.
    ///
    /// # Errors
    /// [`Error::Recipe`] when `train.tokens` is more than there will be.
    pub fn of_synthetic(recipe: &Recipe, spec: &Spec) -> Result<DataSize, Error> {
        let extent = Extent::of_synthetic(recipe, spec)?;
        let row_bytes = extent.row_bytes() as u64;
        let ahead = |rows: u64, order| {
            let asked = recipe.data.prefetch_bytes.unwrap_or(0);
            Stream::bytes_at_most_of_unwritten(rows.saturating_mul(row_bytes), order, asked)
        };
        Ok(DataSize {
            extent,
            stream_bytes: ahead(spec.rows, extent.order),
            evaluation_bytes: extent.eval_rows.map_or(0, |rows| ahead(rows, Order::Sequential)),
            known_directions: true,
        })
    }

    /// Whether weights are looked at besides by training.
    fn looked_at(&self) -> bool {
        self.extent.eval_rows.is_some() || self.known_directions
    }
}

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
    /// Bytes of weights and moments, and of the weights that evaluation looks at where those are others.
    pub weight_bytes: u64,
    /// Bytes of a batch, its lists, the gradient and all other scratch, at most.
    pub step_bytes: u64,
    /// Bytes of rows held ahead of the step.
    pub stream_bytes: u64,
    /// Bytes held besides, for a while: the sample that norms are looked at in, weights to start from, an evaluation, the making
    /// of a checkpoint, whichever takes most.
    pub passing_bytes: u64,
    /// Bytes of a checkpoint.
    pub checkpoint_bytes: u64,
    /// Bytes of it that a rank may keep in memory while training goes on: those of the recipe, or what its host can spare.
    pub buffer_bytes: u64,
}

impl Plan {
    /// Of `recipe` on `rows` and `device`, on a host whose memory so many ranks share.
    ///
    /// # Errors
    /// [`Error::Recipe`] and those of the loader, when the run could not start: too many ranks, too little memory of a device.
    pub fn of<D: Device>(device: &D, recipe: &Recipe, rows: &DataSize, host_ranks: usize) -> Result<Plan, Error> {
        let DataSize { extent, stream_bytes, .. } = *rows;
        let (width, features) = (extent.width as u64, recipe.sae.features as u64);
        let place = device.axes().place;
        check_fits(device, recipe, rows, place, host_ranks)?;
        let shape = shape(recipe, extent, place);
        let settles = settles(recipe, rows.looked_at());
        let settled = if settles { device.bytes(shape, Purpose::Evaluation) } else { Bytes::default() };
        let training = device.bytes(shape, Purpose::Training);
        let staged = ((1 + D::AHEAD) * shape.batch * extent.row_bytes()) as u64;
        let weight_bytes = training.weights + settled.weights;
        let step_bytes = training.step + training.lists + settled.step + settled.lists + staged;
        let looking = looking_bytes(recipe, rows, place)?;
        let on_host = if device.room().is_none() { weight_bytes + step_bytes } else { staged };
        let own = (on_host + stream_bytes + looking).saturating_mul(host_ranks as u64);
        let left = memory::available().map(|bytes| bytes.saturating_sub(own));
        let buffer_bytes = recipe.checkpoint.buffer_bytes.unwrap_or_else(|| checkpoint::spare_bytes(left, host_ranks));
        let owned = place.owned(recipe.sae.features).len();
        Ok(Plan {
            rows: extent.rows,
            width: extent.width,
            dtype: extent.dtype.name(),
            order: match extent.order {
                loader::Order::Sequential => "sequential".into(),
                loader::Order::Striped => "striped".into(),
                loader::Order::Direct { window_bytes } => format!("direct, window of {window_bytes} bytes"),
            },
            steps: extent.schedule(&recipe.train).steps(),
            parameters: 2 * width * features + features + width,
            bytes_read: extent.rows * extent.row_bytes() as u64,
            weight_bytes,
            step_bytes,
            stream_bytes,
            passing_bytes: looking.max(checkpoint::staging_bytes(shape.width, owned, buffer_bytes)),
            checkpoint_bytes: checkpoint::bytes(shape.width, recipe.sae.features),
            buffer_bytes,
        })
    }

    /// Bytes held at once, at most, besides the program itself.
    pub fn memory_bytes(&self) -> u64 {
        self.weight_bytes + self.step_bytes + self.stream_bytes + self.passing_bytes
    }
}

/// Bytes of the sample behind `data.scale`, of weights that the run starts from, or of rows that an evaluation holds ahead, whichever
/// are most.
fn looking_bytes(recipe: &Recipe, rows: &DataSize, place: Place) -> Result<u64, Error> {
    let DataSize { extent: Extent { width, rows, .. }, evaluation_bytes, .. } = *rows;
    // Drawn place by place, then put together.
    let sample = 2 * 4 * (survey::ROWS as u64).min(rows) * width as u64;
    let of_shard = |_| init::bytes(width, place.shard(recipe.sae.features).len());
    Ok(sample.max(evaluation_bytes).max(recipe.train.init_from.as_ref().map_or(0, of_shard)))
}

/// The sizes of the dictionary of a recipe on the rank at `place`.
pub fn shape(recipe: &Recipe, extent: Extent, place: Place) -> Shape {
    Shape {
        width: extent.width,
        features: place.shard(recipe.sae.features).len(),
        batch: most_rows(place, extent.largest_batch()) * place.mesh.feature,
        dense_bytes: recipe.train.dense_bytes as usize,
    }
}

/// Which rows Adam updates.
pub fn adam_mode(recipe: &Recipe) -> AdamMode {
    match recipe.train.adam {
        Adam::Dense => AdamMode::Dense,
        Adam::Catchup => AdamMode::Catchup,
        Adam::Touched => AdamMode::Touched,
    }
}

/// Whether there is a second dictionary of the same shape in which weights settle: where the recipe's mode owes updates and somebody
/// `looks` at the weights.
pub(crate) fn settles(recipe: &Recipe, looks: bool) -> bool {
    recipe.train.adam == Adam::Catchup && looks
}

/// How many of these runs, the first ones, fit into memory together on a host that so many ranks share. One may be begun by itself where
/// it is none, if [`check_fits`] lets it.
pub fn how_many_fit(device: &impl Device, runs: &[(&Recipe, DataSize)], host_ranks: usize) -> usize {
    let place = device.axes().place;
    let shapes =
        runs.iter().map(|(recipe, rows)| (shape(recipe, rows.extent, place), settles(recipe, rows.looked_at())));
    let shapes: Vec<(Shape, bool)> = shapes.collect();
    let fit = |room: &Room| room.how_many(device, &shapes);
    Room::of_several(device, host_ranks).iter().map(fit).min().unwrap_or(runs.len())
}

/// Refuses a mesh that leaves ranks without features or rows, and a dictionary that does not fit into the memory of the device, or of this
/// machine where so many ranks compute on its processor: the one of the rank at `place`, and the second one where there is to be one.
///
/// # Errors
/// [`Error::Recipe`] with what there may be or what would fit; [`Error::Device`] when the batch is more than the device can count.
pub fn check_fits(
    device: &impl Device,
    recipe: &Recipe,
    rows: &DataSize,
    place: Place,
    host_ranks: usize,
) -> Result<(), Error> {
    communication::check(recipe, place.mesh)?;
    let shape = shape(recipe, rows.extent, place);
    device.check(shape)?;
    let settles = settles(recipe, rows.looked_at());
    Room::of(device, host_ranks).iter().try_for_each(|room| room.check(device, shape, settles))
}

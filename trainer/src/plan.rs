//! What a run will read, hold in memory and write: known before it starts, because a step allocates nothing but
//! lists of what is active.

use kernels::mesh::Place;
use kernels::{AdamMode, Bytes, Device, Shape};
use loader::{Stream, memory};

use crate::data::{self, Data, Extent};
use crate::recipe::{Adam, Recipe};
use crate::recovery::Truth;
use crate::roll_call::most_rows;
use crate::{Error, checkpoint, communication, init, survey};

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
    /// Of `recipe` on opened data and `device`, on a host whose memory so many ranks share.
    ///
    /// # Errors
    /// [`Error::Recipe`] and those of the loader, when the run could not start: too many ranks, too little memory of a device.
    pub fn of<D: Device>(device: &D, recipe: &Recipe, data: &Data, host_ranks: usize) -> Result<Plan, Error> {
        let (width, features) = (data.train.width() as u64, recipe.sae.features as u64);
        communication::check(recipe, device.axes().place.mesh)?;
        let place = device.axes().place;
        let shape = shape(recipe, data.extent(), place);
        let truth = Truth::beside(&recipe.data.train)?.filter(|truth| truth.width == shape.width);
        let settled = settled(shape, data.eval.is_some() || truth.is_some());
        check_room(device, shape, settled)?;
        let settled = settled.map(|shape| device.bytes(shape)).unwrap_or_default();
        let training = device.bytes(shape);
        let staged = ((1 + D::AHEAD) * shape.batch * data.train.row_bytes()) as u64;
        let stream_bytes = Stream::bytes_at_most(&data.train, &data.train_options(recipe)?)?;
        let weight_bytes = training.weights + settled.weights;
        let step_bytes = training.step + training.lists + settled.step + settled.lists + staged;
        let looking = looking_bytes(recipe, data, place)?;
        let on_host = if device.room().is_none() { weight_bytes + step_bytes } else { staged };
        let own = (on_host + stream_bytes + looking).saturating_mul(host_ranks as u64);
        let left = memory::available().map(|bytes| bytes.saturating_sub(own));
        let buffer_bytes = recipe.checkpoint.buffer_bytes.unwrap_or_else(|| checkpoint::spare_bytes(left, host_ranks));
        let owned = place.owned(recipe.sae.features).len();
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
            parameters: 2 * width * features + features + width,
            bytes_read: data.rows * data.train.row_bytes() as u64,
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
fn looking_bytes(recipe: &Recipe, data: &Data, place: Place) -> Result<u64, Error> {
    // Drawn place by place, then put together.
    let sample = 2 * 4 * (survey::ROWS as u64).min(data.rows) * data.train.width() as u64;
    let evaluation = match &data.eval {
        Some(eval) => Stream::bytes_at_most(eval, &data::eval_options(recipe, None))?,
        None => 0,
    };
    let of_shard = |_| init::bytes(data.train.width(), place.shard(recipe.sae.features).len());
    Ok(sample.max(evaluation).max(recipe.train.init_from.as_ref().map_or(0, of_shard)))
}

/// What the dictionary of a recipe needs on the rank at `place`.
pub fn shape(recipe: &Recipe, extent: Extent, place: Place) -> Shape {
    let adam = match recipe.train.adam {
        Adam::Dense => AdamMode::Dense,
        Adam::Catchup => AdamMode::Catchup,
        Adam::Touched => AdamMode::Touched,
    };
    Shape {
        width: extent.width,
        features: place.shard(recipe.sae.features).len(),
        batch: most_rows(place, extent.largest_batch(recipe)) * place.mesh.feature,
        adam: Some(adam),
        dense_bytes: recipe.train.dense_bytes as usize,
    }
}

/// What a second dictionary needs in which weights settle, when the mode of `shape` owes updates and somebody `looks` at the
/// weights.
pub(crate) fn settled(shape: Shape, looks: bool) -> Option<Shape> {
    (shape.adam == Some(AdamMode::Catchup) && looks).then_some(Shape { adam: None, ..shape })
}

/// Refuses a dictionary of `shape`, and the second one if there is to be one, that does not fit into the device's memory.
///
/// # Errors
/// [`Error::Recipe`] with what would fit; [`Error::Device`] when the batch is more than the device can count.
pub(crate) fn check_room(device: &impl Device, shape: Shape, settled: Option<Shape>) -> Result<(), Error> {
    device.check(shape)?;
    let Some(room) = device.room() else { return Ok(()) };
    let total = |shape: Shape| device.bytes(shape).total();
    let need = |features: usize, batch: usize| {
        let second = settled.map_or(0, |second| total(Shape { features, batch, ..second }));
        total(Shape { features, batch, ..shape }).saturating_add(second)
    };
    let needed = need(shape.features, shape.batch);
    if needed <= room {
        return Ok(());
    }
    let features = largest(shape.features, 128, |features| need(features, shape.batch) <= room);
    let batch = largest(shape.batch, 64, |batch| need(shape.features, batch) <= room);
    let remedy = match (features, batch) {
        (None, None) => "neither fewer sae.features nor a smaller train.batch alone would fit: lower both".to_owned(),
        (Some(features), None) => format!("sae.features = {features} would fit; a smaller train.batch alone would not"),
        (None, Some(batch)) => format!("train.batch = {batch} would fit; fewer sae.features alone would not"),
        (Some(features), Some(batch)) => {
            format!("sae.features = {features} would fit, and so would train.batch = {batch}")
        }
    };
    let lighter = lighter(device, shape, settled, room).map_or(String::new(), |keys| format!("; {keys} would fit"));
    let mib = |bytes: u64| bytes / (1 << 20);
    Err(Error::Recipe(format!(
        "the dictionary does not fit into the memory of {}: it needs {} MiB, and {} MiB are free: {remedy}{lighter}",
        device.describe(),
        mib(needed),
        mib(room)
    )))
}

/// The keys with which a dictionary of `shape`, and the second one if there is to be one, fits into `room` as it is.
fn lighter(device: &impl Device, shape: Shape, settled: Option<Shape>, room: u64) -> Option<&'static str> {
    let second = |keys: &str| {
        let Some(shape) = settled else { return 0 };
        let lighter = device.lighter(shape).into_iter().find(|(other, _)| *other == keys);
        lighter.map_or_else(|| device.bytes(shape), |(_, bytes)| bytes).total()
    };
    let fits = |&(keys, bytes): &(&'static str, Bytes)| bytes.total().saturating_add(second(keys)) <= room;
    device.lighter(shape).into_iter().find(fits).map(|(keys, _)| keys)
}

/// The largest multiple of `unit` below `limit` that fits, by bisection.
fn largest(limit: usize, unit: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, limit / unit);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle * unit) { low = middle } else { high = middle - 1 }
    }
    (low > 0).then_some(low * unit)
}

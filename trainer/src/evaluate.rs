//! Evaluation: one streaming pass over rows that are not trained on.

use kernels::{AdamMode, Device, Dictionary, Path, Shape, Sums};
use loader::{Dataset, Stream};

use crate::data::row_dtype;
use crate::recipe::Adam;
use crate::step::with_room;
use crate::{Error, checkpoint, train};

/// Memory for the rows of a batch, on host and device.
#[derive(Debug)]
pub struct Buffers<D: Device> {
    /// Rows as stored.
    pub staging: D::Staging,
    /// Rows as used.
    pub x: D::Rows,
}

impl<D: Device> Buffers<D> {
    /// For batches of `batch` rows of `width` values of `value_bytes`.
    ///
    /// # Errors
    /// [`kernels::Error::OutOfMemory`].
    pub fn new(device: &D, batch: usize, width: usize, value_bytes: usize) -> Result<Self, kernels::Error> {
        Ok(Buffers { staging: device.staging(batch * width * value_bytes)?, x: device.rows(batch, width)? })
    }
}

/// Reads `stream` to its end and returns the sums over its rows. `progress` hears the rows done so far; its error ends it.
///
/// # Errors
/// Those of the loader and of `progress`; [`loader::Error::Data`] naming a row that is not finite.
pub fn sums<D: Device>(
    device: &D,
    sae: &mut D::Dictionary,
    (Buffers { staging, x }, tally): (&mut Buffers<D>, &mut D::Tally),
    dataset: &Dataset,
    stream: &mut Stream,
    scale: f32,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Sums, Error> {
    device.take_sums(tally)?;
    let (mut density, mut rows) = (1.0, 0);
    while let Some(batch) = stream.next(staging.as_mut())? {
        if batch.rows == 0 {
            continue;
        }
        device.normalize(staging, row_dtype(dataset.dtype()), batch.rows, scale, x);
        let path = if density > device.dense_above() { Path::Dense } else { Path::Sparse };
        let report = with_room(sae, path, |sae, path| {
            sae.encode(x, path);
            sae.decode(x);
            sae.residual(x);
            sae.count(x, tally, 0..batch.rows);
        })?;
        if let Some(&row) = report.non_finite_rows.first() {
            let id = stream.row_ids(&batch).get(row).map(|id| dataset.row_name(*id)).unwrap_or_default();
            return Err(loader::Error::Data {
                location: id,
                problem: "this row holds a value that is NaN or infinite: leave it out of the data".into(),
            }
            .into());
        }
        density = report.active as f64 / (report.rows * sae.shape().features) as f64;
        rows += batch.rows as u64;
        progress(rows)?;
    }
    Ok(device.take_sums(tally)?)
}

/// A dictionary that can encode and decode, with the weights of a checkpoint; updates that `catchup` still owes are made.
///
/// # Errors
/// [`Error::Checkpoint`] when a file is damaged; [`kernels::Error::OutOfMemory`].
pub fn load<D: Device>(
    device: &D,
    store: &loader::Store,
    found: &checkpoint::Found,
    batch: usize,
) -> Result<D::Dictionary, Error> {
    let manifest = &found.manifest;
    let shape = Shape { width: manifest.width, features: manifest.features, batch, adam: None, dense_bytes: 0 };
    let mut sae = device.dictionary(shape)?;
    if manifest.recipe.train.adam == Adam::Catchup {
        let mut lazy = device.dictionary(Shape { batch: 1, adam: Some(AdamMode::Catchup), ..shape })?;
        checkpoint::load_weights(store, found, &mut lazy, true)?;
        lazy.settle_into(&train::next_update(manifest), &mut sae);
    } else {
        checkpoint::load_weights(store, found, &mut sae, false)?;
    }
    Ok(sae)
}

//! Evaluation: one streaming pass over rows that are not trained on.

use kernels::mesh::Axes;
use kernels::{AdamMode, Device, Dictionary, Path, Report, Shape, Sums};
use loader::{Dataset, Stream};

use crate::buffers::{Buffers, Seen};
use crate::data::row_dtype;
use crate::recipe::Adam;
use crate::roll_call::Answer;
use crate::step::with_room;
use crate::together::together;
use crate::{Error, checkpoint, train};

/// A pass over rows that are not trained on.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The rows.
    pub dataset: &'a Dataset,
    /// `F`, over all ranks.
    pub features: usize,
    /// Factor on every row.
    pub scale: f32,
}

impl Pass<'_> {
    /// Reads `stream` to its end and returns the sums over its rows; over several ranks, each reads its part. `progress` hears the
    /// rows done so far, and whether a rank was asked to stop (`stop` says so of this one); its error ends it.
    ///
    /// # Errors
    /// Those of the loader and of `progress`; [`loader::Error::Data`] naming a row that is not finite.
    pub fn sums<D: Device>(
        &self,
        device: &D,
        sae: &mut D::Dictionary,
        (buffers, tally): (&mut Buffers<D>, &mut D::Tally),
        stream: &mut Stream,
        stop: impl Fn() -> bool,
        mut progress: impl FnMut(u64, bool) -> Result<(), Error>,
    ) -> Result<Sums, Error> {
        device.take_sums(tally)?;
        let (mut density, mut rows) = (1.0, 0);
        while let Some(seen) = buffers.next(device, stream, Answer { stop: stop(), ..Answer::default() })? {
            let call = &seen.call;
            if call.rows() == 0 {
                continue;
            }
            let Buffers { staging, x, .. } = &mut *buffers;
            let dtype = row_dtype(self.dataset.dtype());
            device.normalize(staging, dtype, call.seen(), call.rows(), self.scale, x);
            let path = if density > device.dense_above() { Path::Dense } else { Path::Sparse };
            let report = with_room(sae, path, |sae, path| {
                sae.encode(x, path);
                sae.decode(x);
                sae.residual(x);
                sae.count(x, tally, 0..call.seen());
            })?;
            if !report.ok {
                let bad = bad_rows(device.axes(), self.dataset, stream, &seen, &report)?;
                return Err(loader::Error::Data {
                    location: bad.first().cloned().unwrap_or_default(),
                    problem: "this row holds a value that is NaN or infinite: leave it out of the data".into(),
                }
                .into());
            }
            density = report.active as f64 / (report.rows * self.features) as f64;
            rows += call.rows() as u64;
            progress(rows, call.stop)?;
        }
        Ok(device.take_sums(tally)?)
    }
}

/// Names of the rows of a batch that are not finite, over all ranks.
///
/// # Errors
/// [`kernels::Error::Peer`].
pub(crate) fn bad_rows(
    axes: &Axes,
    dataset: &Dataset,
    stream: &Stream,
    seen: &Seen,
    report: &Report,
) -> Result<Vec<String>, Error> {
    let ids = stream.row_ids(&seen.own);
    let own = report.non_finite_rows.iter().filter_map(|row| ids.get(row.checked_sub(seen.call.before())?));
    let named = own.map(|&id| dataset.row_name(id)).collect();
    Ok(together(&axes.all, "naming bad rows", Ok::<Vec<String>, Error>(named))?.into_iter().flatten().collect())
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

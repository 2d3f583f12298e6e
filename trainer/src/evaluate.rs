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

/// Reads `stream` to its end and returns the sums over its rows; over several ranks, each reads its part. `progress` hears the rows
/// done so far, and whether a rank was asked to stop (`stop` says so of this one); its error ends it.
///
/// # Errors
/// Those of the loader and of `progress`; [`loader::Error::Data`] naming a row that is not finite.
pub fn sums<D: Device>(
    device: &D,
    sae: &mut D::Dictionary,
    buffers: &mut Buffers<D>,
    dataset: &Dataset,
    stream: &mut Stream,
    (features, scale): (usize, f32),
    stop: impl Fn() -> bool,
    mut progress: impl FnMut(u64, bool) -> Result<(), Error>,
) -> Result<Sums, Error> {
    device.take_sums(&mut buffers.tally)?;
    let (mut density, mut rows) = (1.0, 0);
    while let Some(Seen { own, call }) = buffers.next(device, stream, Answer { stop: stop(), ..Answer::default() })? {
        if call.rows() == 0 {
            continue;
        }
        let Buffers { staging, x, tally, .. } = &mut *buffers;
        device.normalize(staging, row_dtype(dataset.dtype()), call.seen(), call.rows(), scale, x);
        let path = if density > device.dense_above() { Path::Dense } else { Path::Sparse };
        let report = with_room(path, |path| {
            sae.encode(x, path);
            sae.decode(x);
            sae.residual(x);
            sae.count(x, tally, 0..call.seen());
            sae.report()
        })?;
        if !report.ok {
            let bad = bad_rows(device.axes(), dataset, stream, &Seen { own, call }, &report)?;
            return Err(loader::Error::Data {
                location: bad.first().cloned().unwrap_or_default(),
                problem: "this row holds a value that is NaN or infinite: leave it out of the data".into(),
            }
            .into());
        }
        density = report.active as f64 / (report.rows * features) as f64;
        rows += call.rows() as u64;
        progress(rows, call.stop)?;
    }
    Ok(device.take_sums(&mut buffers.tally)?)
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

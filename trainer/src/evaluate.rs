//! Evaluation: one streaming pass over rows that are not trained on.

use std::ops::Range;

use kernels::mesh::Axes;
use kernels::{AdamMode, AdamUpdate, Device, Dictionary, Path, Report, Shape, Sums, Tensor, Training};
use loader::{Dataset, Positions, Stream};

use crate::buffers::{Buffers, Seen};
use crate::checkpoint::LeftOut;
use crate::data::row_dtype;
use crate::ranks::roll_call::Answer;
use crate::ranks::together::together;
use crate::recipe::Adam;
use crate::report::centre::{Centre, Unexplained};
use crate::report::metrics::Metrics;
use crate::schedule::Schedule;
use crate::step::with_room;
use crate::{Error, checkpoint};

/// A pass over rows that are not trained on.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The rows.
    pub dataset: &'a Dataset,
    /// `F`, over all ranks.
    pub features: usize,
    /// Factor on every row.
    pub scale: f32,
    /// The middle of the rows.
    pub centre: &'a Centre,
}

/// What a pass has measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Sums over its rows.
    pub sums: Sums,
    /// See [`Metrics::explained_variance_rows`].
    pub explained_variance_rows: Option<f64>,
    /// Rows that were not measured.
    pub left_out: LeftOut,
}

impl Measured {
    /// `None` when no row was measured.
    pub fn metrics(&self, lambda: f64) -> Option<Metrics> {
        let metrics = Metrics::of(&self.sums, lambda)?;
        Some(Metrics { explained_variance_rows: self.explained_variance_rows, ..metrics })
    }
}

impl Pass<'_> {
    /// Reads `stream` to its end and measures its rows; over several ranks, each reads its part. `progress` hears the
    /// rows done so far, and whether a rank was asked to stop (`stop` says so of this one); its error ends it.
    ///
    /// # Errors
    /// Those of the loader and of `progress`; [`loader::Error::Data`] naming a row that is not finite.
    pub fn measure<D: Device>(
        &self,
        device: &D,
        sae: &mut (impl Dictionary<Rows = D::Rows, Tally = D::Tally> + ?Sized),
        (buffers, tally): (&mut Buffers<D>, &mut D::Tally),
        stream: &mut Stream,
        stop: impl Fn() -> bool,
        mut progress: impl FnMut(u64, bool) -> Result<(), Error>,
    ) -> Result<Measured, Error> {
        device.take_sums(tally)?;
        let (mut density, mut rows) = (1.0, 0);
        let (mut unexplained, mut left_out) = (Unexplained::default(), LeftOut::default());
        while let Some(seen) = buffers.read(device, stream, Answer { stop: stop(), ..Answer::default() })? {
            let distances = self.centre.distances(self.dataset, buffers.own(device, &seen, stream.row_bytes()));
            buffers.bring_together(device, &seen, stream.row_bytes())?;
            let call = &seen.call;
            left_out.skipped += call.left_out.skipped;
            left_out.filtered += call.left_out.filtered;
            if call.rows() == 0 {
                continue;
            }
            let Buffers { staging, x, .. } = &mut *buffers;
            let dtype = row_dtype(self.dataset.dtype());
            device.normalize(staging, dtype, call.rows_here(), call.rows(), self.scale, x);
            let path = if density > device.dense_above() { Path::Dense } else { Path::Sparse };
            let report = with_room(sae, path, |sae, path| {
                sae.encode(x, path);
                sae.decode(x);
                sae.residual(x);
                sae.count(x, tally, 0..call.rows_here());
            })?;
            if !report.ok {
                let bad = bad_rows(device.axes(), self.dataset, stream.positions(), &seen, &report)?;
                return Err(loader::Error::Data {
                    location: bad.first().map_or_else(String::new, |row| format!("held-out row {row}")),
                    problem: "it holds a value that is NaN or infinite: mend the data, or leave the row out (data.eval_skip, which may \
                              grow when a run is resumed; data.filter.finite in a new run)"
                        .into(),
                    source: None,
                    help: None,
                }
                .into());
            }
            if !distances.is_empty() {
                let mut errors = vec![0.0; distances.len()];
                sae.errors(call.rows_before()..call.rows_before() + errors.len(), &mut errors)?;
                unexplained.add(&errors, &distances, self.scale);
            }
            density = report.active as f64 / (report.rows * self.features) as f64;
            rows += call.rows() as u64;
            progress(rows, call.stop)?;
        }
        let sums = device.take_sums(tally)?;
        Ok(Measured { sums, explained_variance_rows: unexplained.explained(&device.axes().all)?, left_out })
    }
}

/// Names of the rows of a batch that are not finite, over all ranks.
///
/// # Errors
/// [`kernels::Error::Peer`].
pub(crate) fn bad_rows(
    axes: &Axes,
    dataset: &Dataset,
    positions: &Positions,
    seen: &Seen,
    report: &Report,
) -> Result<Vec<String>, Error> {
    let ids = positions.row_ids(&seen.own);
    let own = report.non_finite_rows.iter().filter_map(|row| ids.get(row.checked_sub(seen.call.rows_before())?));
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
    load_features(device, store, found, 0..found.manifest.features, batch)
}

/// As [`load`], of some features alone.
///
/// # Errors
/// Those of [`load`].
pub fn load_features<D: Device>(
    device: &D,
    store: &loader::Store,
    found: &checkpoint::Found,
    features: Range<usize>,
    batch: usize,
) -> Result<D::Dictionary, Error> {
    let manifest = &found.manifest;
    let shape = Shape { width: manifest.width, features: features.len(), batch, dense_bytes: 0 };
    let mut sae = device.dictionary(shape)?;
    if manifest.recipe.train.adam == Adam::Catchup {
        let mut lazy = device.training(Shape { batch: 1, ..shape }, AdamMode::Catchup)?;
        checkpoint::load_training(store, found, features, &mut lazy)?;
        lazy.settle_into(&next_update(manifest), &mut sae);
    } else {
        checkpoint::load_weights(store, found, features, &mut sae)?;
    }
    Ok(sae)
}

/// `b_dec` of a checkpoint, as [`load`] would have it.
///
/// # Errors
/// Those of [`load`].
pub(crate) fn decoder_bias(
    device: &impl Device,
    store: &loader::Store,
    found: &checkpoint::Found,
) -> Result<Vec<f32>, Error> {
    let sae = load_features(device, store, found, 0..1.min(found.manifest.features), 1)?;
    let mut b_dec_d = vec![0.0; found.manifest.width];
    sae.read(Tensor::DecoderBias, 0..1, &mut b_dec_d)?;
    Ok(b_dec_d)
}

/// The update that would come after a checkpoint: what is owed before it can be settled with it.
fn next_update(manifest: &checkpoint::Manifest) -> AdamUpdate {
    let train = &manifest.recipe.train;
    let schedule = Schedule::new(manifest.steps, train.lr, train.l1, train.l1_warmup, train.lr_decay);
    let (step, tokens) = (manifest.step, manifest.tokens);
    AdamUpdate { step, lr: schedule.lr(), clip: train.clip as f32, tokens, seed: train.seed }
}

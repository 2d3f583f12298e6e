//! The device seam: what a device must offer so that the trainer can run a step on it.
//!
//! Buffers are opaque. Operations are enqueued in call order and may return before they are done; what the host wants
//! to know is read from a small [`Report`], [`Device::AHEAD`] steps late, so that the device always has something to do.
//! Memory is taken when a device object is made, as much as [`Device::bytes`] says before; a step allocates at most lists of
//! what is active.
//! On the step's path no weights, rows or gradients cross the seam; [`Dictionary::read`] and [`Dictionary::write`]
//! exist for checkpoints, initialisation and export.
//!
//! What a dictionary can do is its type. [`Dictionary`] is what evaluation needs; [`Training`] is one that can be trained
//! as well. A device makes both, and an evaluation takes either.

use std::ops::Range;
use std::time::Duration;

use crate::mesh::Axes;
use crate::{Error, Sums};

/// How the values of a stored row are encoded, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowDtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl RowDtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            RowDtype::F32 => 4,
            RowDtype::F16 | RowDtype::Bf16 => 2,
        }
    }
}

/// Which rows Adam updates at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdamMode {
    /// Every row, every step: Adam as published.
    Dense,
    /// Rows whose feature fired in the batch; before their gradient is added, the steps that dense Adam would have
    /// made since the last touch are applied in closed form.
    Catchup,
    /// Rows whose feature fired in the batch; the others keep weights and moments as they are.
    Touched,
}

/// The sizes of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `D`, values in a row.
    pub width: usize,
    /// `F`, features held by this rank.
    pub features: usize,
    /// `B`, most rows in a batch.
    pub batch: usize,
    /// Bytes that the dense path may take to keep the activations of a batch for the backward pass. When `4·B·F` is
    /// more, it computes them again, tile by tile.
    pub dense_bytes: usize,
}

/// What a dictionary is made for: with its [`Shape`], all memory follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A [`Dictionary`]: weights, and what encode and decode need.
    Evaluation,
    /// A [`Training`]: moments, clocks and what backward needs besides.
    Training,
}

/// How encode and decode treat a batch. Both give the same numbers up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Lists of active features; nothing of size `B×F` is written.
    Sparse,
    /// GEMMs over tiles of features: faster when a large share of the features is active.
    Dense,
}

/// The parameters of a dictionary. Each is `rows × columns`, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// `W_enc [F, D]` (stored feature-major; files hold its transpose).
    EncoderWeight,
    /// `b_enc [F, 1]`.
    EncoderBias,
    /// `W_dec [F, D]`.
    DecoderWeight,
    /// `b_dec [1, D]`.
    DecoderBias,
}

impl Tensor {
    /// That of W_enc, b_enc, W_dec and b_dec, in this order, which belongs to it.
    pub(crate) fn of<T>(self, [w_enc, b_enc, w_dec, b_dec]: [T; 4]) -> T {
        match self {
            Tensor::EncoderWeight => w_enc,
            Tensor::EncoderBias => b_enc,
            Tensor::DecoderWeight => w_dec,
            Tensor::DecoderBias => b_dec,
        }
    }
}

/// Adam's means over the gradients of a [`Tensor`], an array like it each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Of the gradients.
    First,
    /// Of their squares.
    Second,
}

/// Counters kept for each feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// One more than the step of the feature's last Adam update; 0 before the first ([`AdamMode::Catchup`] needs it).
    LastUpdate,
    /// Tokens that the run had seen at the end of the last batch in which the feature fired; 0 before the first.
    LastFired,
}

/// The learning rate over a run: constant, then linear to 0. Catching up needs that of steps gone by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Before the decay.
    pub base: f64,
    /// First step of the decay.
    pub decay_from: f64,
    /// Steps of the run.
    pub steps: f64,
}

impl LearningRate {
    /// The same at every step.
    pub fn constant(base: f64) -> Self {
        LearningRate { base, decay_from: f64::INFINITY, steps: f64::INFINITY }
    }

    /// `base`, and from `decay_from` on `base · (S − s) / (S − decay_from)`.
    pub fn at(self, step: u64) -> f64 {
        let s = step as f64;
        if s < self.decay_from { self.base } else { self.base * (self.steps - s) / (self.steps - self.decay_from) }
    }
}

/// β₁, β₂ and ε of Adam.
pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
pub(crate) const EPSILON: f32 = 1e-8;

/// One Adam step: β = (0.9, 0.999), ε = 1e-8, bias correction with `step + 1`.
#[derive(Clone, Copy, Debug)]
pub struct AdamUpdate {
    /// Counted from 0.
    pub step: u64,
    /// Learning rate of this and earlier steps.
    pub lr: LearningRate,
    /// The gradient is multiplied by `min(1, clip / (‖g‖ + 1e-6))`.
    pub clip: f32,
    /// Tokens seen by the run when this batch is done; features that fired in it get it as [`Clock::LastFired`].
    pub tokens: u64,
    /// With the step, what a device goes by that rounds weights or moments stochastically: the same seed gives the same bits.
    pub seed: u64,
}

impl AdamUpdate {
    /// `lr / c₁` and `1 / √c₂` of this step.
    pub(crate) fn factors(&self) -> (f32, f32) {
        let (c1, c2) = corrections(self.step + 1);
        ((self.lr.at(self.step) / c1) as f32, (1.0 / c2.sqrt()) as f32)
    }
}

/// `c₁ = 1 − β₁^n` and `c₂ = 1 − β₂^n`.
pub(crate) fn corrections(n: u64) -> (f64, f64) {
    let power = |beta: f64| 1.0 - beta.powf(n as f64);
    (power(BETA1), power(BETA2))
}

/// What a step tells the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Rows in the batch, over all ranks as everything here but the next.
    pub rows: usize,
    /// Indices in this rank's part of the batch of rows with a NaN or infinite value (at most 64 are named). If any rank has
    /// one, or the gradient norm is not finite, the update was refused and no state has changed.
    pub non_finite_rows: Vec<usize>,
    /// False when the update was refused (or none was asked for because the gradient is not finite).
    pub ok: bool,
    /// There was no room for the active features of this batch on [`Path::Sparse`]. Nothing has changed; the same step on
    /// [`Path::Dense`] has room for any.
    pub overflow: bool,
    /// The batch before was refused, and [`Dictionary::release`] not called since: nothing has changed, whatever this batch is
    /// like.
    pub held: bool,
    /// `Σ_t ‖x_t − x̂_t‖²`.
    pub squared_error: f64,
    /// `Σ_t Σ_f a_tf ‖W_dec[f]‖`.
    pub l1: f64,
    /// `Σ_t #{f : a_tf > 0}`.
    pub active: u64,
    /// `‖∂L‖₂` over all parameters, before clipping; 0 without a backward pass.
    pub gradient_norm: f64,
}

/// Names of the formats that weights and moments are kept in; `None` where one stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Of the weights: `bf16-sr`.
    pub weights: Option<&'static str>,
    /// Of Adam's moments: `bf16` or `int8`.
    pub moments: Option<&'static str>,
}

/// What the objects of a [`Shape`] take of a device's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// A dictionary's weights and moments, and what is derived from them.
    pub weights: u64,
    /// What a step needs besides: scratch of a dictionary, a batch of rows, a tally.
    pub step: u64,
    /// Lists of active features, at most: they grow with what is active in a batch. A batch denser than
    /// [`Device::dense_above`] on which [`Path::Sparse`] is asked for takes more.
    pub lists: u64,
}

impl Bytes {
    /// The sum of all three.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.step).saturating_add(self.lists)
    }
}

/// One accelerator, or the processor.
pub trait Device: Sync {
    /// Steps that may be enqueued before the report of the first of them is read; 0 where operations are done when they
    /// return. So many batches more have to keep their [`Device::Rows`]: what was refused is made again from them.
    const AHEAD: usize;

    /// Host memory that the loader fills and the device reads fast.
    type Staging: AsRef<[u8]> + AsMut<[u8]> + Send;
    /// A batch on the device, scaled: `x [B, D]`.
    type Rows: Send;
    /// Sums kept on the device over several batches.
    type Tally: Send;
    /// A dictionary on the device, to be evaluated.
    type Dictionary: Dictionary<Rows = Self::Rows, Tally = Self::Tally>;
    /// A dictionary on the device, to be trained.
    type Training: Training<Rows = Self::Rows, Tally = Self::Tally, Settled = Self::Dictionary>;

    /// Name and what matters of it, for people: `cpu, 2 threads, avx512f + avx512_bf16`. Up to the first comma it says which kind it is.
    fn describe(&self) -> String;

    /// In which formats it multiplies and keeps weights and moments: `f32`, `bf16 GEMMs, 8-bit moments`. Numbers of two of them differ.
    fn precision(&self) -> String;

    /// The ranks among which its operations are made. Operations on a device of several ranks are made by all of them, in the
    /// same order; those that exchange something say so.
    fn axes(&self) -> &Axes;

    /// Share of active pairs above which [`Path::Dense`] is the faster one here.
    fn dense_above(&self) -> f64;

    /// What a dictionary of `shape` for `purpose`, rows for its batch and a tally take at most, and rows for
    /// [`Device::AHEAD`] batches more when it is to be trained: known without taking it. Scratch that
    /// no step uses may cost addresses only.
    fn bytes(&self, shape: Shape, purpose: Purpose) -> Bytes;

    /// Whether what it counts of a batch of `shape` stays within the numbers that it counts with.
    ///
    /// # Errors
    /// [`Error::TooManyRows`].
    fn check(&self, _shape: Shape) -> Result<(), Error> {
        Ok(())
    }

    /// Other ways to keep weights and moments here that take less memory, widest first, each with what a dictionary of `shape` for
    /// `purpose` takes then. None where there is one way only.
    fn lighter(&self, _shape: Shape, _purpose: Purpose) -> Vec<(Formats, Bytes)> {
        Vec::new()
    }

    /// The threads of this process that the operations run on, where they do. Training happens on one of them: from there an operation
    /// begins at once, while from any other thread one of these has to be woken first, and be waited for.
    fn pool(&self) -> Option<&rayon::ThreadPool> {
        None
    }

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the first operation that failed.
    fn wait(&self) -> Result<(), Error>;

    /// Bytes of its memory that can still be taken; `None` where that is not known.
    fn room(&self) -> Option<u64>;

    /// Takes memory for stored rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn staging(&self, bytes: usize) -> Result<Self::Staging, Error>;

    /// Takes memory for a batch of at most `batch` rows of `width` values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn rows(&self, batch: usize, width: usize) -> Result<Self::Rows, Error>;

    /// Takes memory for sums; they start at 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn tally(&self, width: usize, features: usize) -> Result<Self::Tally, Error>;

    /// Takes memory for a dictionary that is evaluated; everything in it starts at 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn dictionary(&self, shape: Shape) -> Result<Self::Dictionary, Error>;

    /// Takes memory for a dictionary of which Adam updates the rows that `mode` says; everything in it starts at 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn training(&self, shape: Shape, mode: AdamMode) -> Result<Self::Training, Error>;

    /// Brings the stored rows of a batch to all ranks of the feature axis. Each has put its own at `parts[its index]` of
    /// `staged`, ranges of bytes in ascending order; afterwards all lie there one after the other from the start. Exchanges them.
    ///
    /// # Errors
    /// [`Error::Peer`].
    fn gather(&self, staged: &mut Self::Staging, parts: &[Range<usize>]) -> Result<(), Error>;

    /// `x = scale · rows` for the first `n` rows of `staged`, which lie there one after the other in `dtype`, of a batch of
    /// `batch_rows` over the data axis. Rows with a value that is not finite are remembered in `x`. Does not wait: the next call that asks to
    /// write to `staged` does, until its rows were copied.
    fn normalize(
        &self,
        staged: &Self::Staging,
        dtype: RowDtype,
        n: usize,
        batch_rows: usize,
        scale: f32,
        x: &mut Self::Rows,
    );

    /// Reads the sums over the rows of all ranks and starts again at 0. Firings are those of the features that this rank owns.
    /// Exchanges them.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    fn take_sums(&self, tally: &mut Self::Tally) -> Result<Sums, Error>;

    /// Sets the sums over the rows of all ranks, as [`Device::take_sums`] gives them: a run that goes on from a checkpoint goes on
    /// summing where it stood.
    fn put_sums(&self, tally: &mut Self::Tally, sums: &Sums);

    /// Bytes a second that this rank sends while all ranks sum `values` values of 32 bits, by the way that x̂ goes; of one rank alone
    /// 0. Exchanges them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`] and [`Error::Peer`].
    fn exchange_rate(&self, values: usize) -> Result<f64, Error>;

    /// Bytes that this rank has sent to others so far, and the time that it has spent in exchanges, waiting for others included. On a
    /// GPU that is the time of its messages, as far as they are done: it may compute beside them.
    fn exchanged(&self) -> (u64, Duration);
}

/// The rate of a rank of `ranks` that has summed `values` values [`SUMS_TIMED`] times in `time`: it sends each piece but its own to who
/// sums it, and its own sums to all others.
pub(crate) fn rate_of_sums(values: usize, ranks: usize, time: Duration) -> f64 {
    let sent = 2.0 * (4 * values) as f64 * (ranks - 1) as f64 / ranks as f64;
    SUMS_TIMED as f64 * sent / time.as_secs_f64()
}

/// Sums timed for [`Device::exchange_rate`], after one that is not.
pub(crate) const SUMS_TIMED: usize = 4;

/// The active pairs of some rows of a batch, in CSR: a row for each token of the features that are active on it.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivePairs {
    /// Where the pairs of each row begin, and the end: one more than there are rows.
    pub start_r: Vec<usize>,
    /// Features as this rank counts them, ascending within a row.
    pub feature_p: Vec<u32>,
    /// Their activations, above 0.
    pub activation_p: Vec<f32>,
}

impl ActivePairs {
    /// Of rows of (feature, activation).
    pub(crate) fn of_rows(pairs_r: Vec<Vec<(u32, f32)>>) -> Self {
        let ends = pairs_r.iter().scan(0, |end, pairs| {
            *end += pairs.len();
            Some(*end)
        });
        let start_r = [0].into_iter().chain(ends).collect();
        let (feature_p, activation_p) = pairs_r.into_iter().flatten().unzip();
        ActivePairs { start_r, feature_p, activation_p }
    }
}

/// A rank's features with the scratch of a batch. A batch is encoded, decoded and measured in the order in which these
/// operations stand here, on the same `x`; a step goes on with those of [`Training`]. Ranks exchange x̂ and sums in them; that
/// they could not is reported by [`Dictionary::report`].
///
/// A batch is *refused* when it has no room, or it or its gradient is not finite: it changes nothing. A batch enqueued
/// before that is known is *held*: it changes nothing either, nor does any after it until [`Dictionary::release`]. So steps
/// take effect in their order or not at all, however late reports are read.
pub trait Dictionary: Send {
    /// See [`Device::Rows`].
    type Rows;
    /// See [`Device::Tally`].
    type Tally;

    /// What it was made for.
    fn shape(&self) -> Shape;

    /// `a = ReLU(x · W_encᵀ + b_enc)`.
    fn encode(&mut self, x: &Self::Rows, path: Path);

    /// `x̂ = b_dec + a · W_dec`.
    fn decode(&mut self, x: &Self::Rows);

    /// `g = 2 (x̂ − x) / b` with `b` the rows of the batch over all ranks, and the sums of the report.
    fn residual(&mut self, x: &Self::Rows);

    /// Adds the rows whose index in the batch lies in `counted` to `tally`; adds nothing when a row of the batch or, after
    /// [`Training::backward`], the gradient is not finite: the step will be refused, and its rows come again. Stands
    /// before [`Training::adam`] because the decoder norms must be those of the batch; without a step it follows
    /// [`Dictionary::residual`]. May be called several times for one batch.
    fn count(&mut self, x: &Self::Rows, tally: &mut Self::Tally, counted: Range<usize>);

    /// Waits, and copies `‖x − x̂‖²` of `rows` of the last batch to `out`: rows by their index among those that this rank sees, of a batch
    /// that was not refused, after [`Dictionary::residual`].
    ///
    /// # Errors
    /// As [`Dictionary::report`].
    fn errors(&self, rows: Range<usize>, out: &mut [f64]) -> Result<(), Error>;

    /// Waits, and returns the pairs of `rows` of the last batch that are active among this rank's features: rows by their index
    /// among those that this rank sees, of a batch that was not refused, between [`Dictionary::decode`] and the update. Changes
    /// nothing. Activations are those that decode has read, so rounded where the dense path rounds them.
    ///
    /// # Errors
    /// As [`Dictionary::report`].
    ///
    /// # Panics
    /// When the batch has fewer rows.
    fn active_pairs(&self, x: &Self::Rows, rows: Range<usize>) -> Result<ActivePairs, Error>;

    /// Waits until the batch `back` before the last one is done, 0 being the last itself, and returns what it gave. What was
    /// enqueued after that batch goes on meanwhile.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the first operation that failed on the device, whichever it was; [`Error::Peer`].
    ///
    /// # Panics
    /// When `back` is more than [`Device::AHEAD`].
    fn report(&mut self, back: usize) -> Result<Report, Error>;

    /// Batches encoded from here on are no longer held by one refused before: for the host that has heard of it. It makes
    /// that batch again, or leaves it out, and then makes those again that were held.
    fn release(&mut self);

    /// Copies `rows` of a tensor to `out` (`rows.len() × columns` values), rows counted from this rank's first feature.
    ///
    /// # Errors
    /// As [`Dictionary::report`].
    fn read(&self, tensor: Tensor, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error>;

    /// Sets `rows` of a tensor. Decoder norms follow.
    fn write(&mut self, tensor: Tensor, rows: Range<usize>, values: &[f32]);
}

/// A dictionary with its optimiser's state: it can be trained, and be evaluated as any other. The operations of a step are
/// encode, decode, residual, backward, count, adam. Only [`Training::adam`] changes what a checkpoint holds. Ranks exchange
/// gradients and updated weights besides.
pub trait Training: Dictionary {
    /// What the weights settle into: see [`Device::Dictionary`].
    type Settled: Dictionary<Rows = Self::Rows, Tally = Self::Tally>;

    /// The gradient of `mean ‖x − x̂‖² + λ · mean Σ a ‖W_dec‖` in all parameters, and its norm. Follows
    /// [`Dictionary::residual`].
    fn backward(&mut self, x: &Self::Rows, lambda: f32);

    /// Clips, updates, and moves the clocks; does nothing when the batch or its gradient is not finite. Takes the rows
    /// again because a device may make gradient rows a second time instead of storing them.
    fn adam(&mut self, x: &Self::Rows, update: &AdamUpdate);

    /// Copies the weights to `into`, with every update made that [`AdamMode::Catchup`] still owes as of before the update
    /// `next`; in other modes nothing is owed. Leaves this dictionary as it is, so that bits never depend on when somebody
    /// looked.
    ///
    /// # Panics
    /// When `into` has another width or other features.
    fn settle_into(&self, next: &AdamUpdate, into: &mut Self::Settled);

    /// Copies `rows` of a moment of `tensor` to `out`, as [`Dictionary::read`] does of the tensor.
    ///
    /// # Errors
    /// As [`Dictionary::report`].
    ///
    /// # Panics
    /// On features that the rank does not own (see [`crate::mesh`]); so does writing them.
    fn read_moment(&self, tensor: Tensor, moment: Moment, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error>;

    /// Sets `rows` of a moment of `tensor`.
    fn write_moment(&mut self, tensor: Tensor, moment: Moment, rows: Range<usize>, values: &[f32]);

    /// Copies the clocks of `features` to `out`.
    ///
    /// # Errors
    /// As [`Dictionary::report`].
    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error>;

    /// Sets the clocks of `features`.
    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]);
}

//! One training step: the algorithm.

use std::ops::Range;

use kernels::{AdamUpdate, Dictionary, Path, Report, Training};

/// What a step is made with besides its rows.
#[derive(Clone, Debug)]
pub struct StepInput {
    /// How encode and decode treat the batch.
    pub path: Path,
    /// λ at this step.
    pub lambda: f32,
    /// The update at this step.
    pub update: AdamUpdate,
    /// Rows of the batch, by index, that count towards the tally; the others count into another, or into none.
    pub counted: Range<usize>,
}

/// Enqueues the step `x → a → x̂ → g → ∂ → update` on the rows `x`. When there is no room, or a row or the gradient is not
/// finite, the dictionary and the tally stay as they were and the report says so.
pub fn step<Sae: Training>(sae: &mut Sae, x: &Sae::Rows, tally: &mut Sae::Tally, input: &StepInput) {
    sae.encode(x, input.path);
    sae.decode(x);
    sae.residual(x);
    sae.backward(x, input.lambda);
    sae.count(x, tally, input.counted.clone());
    sae.adam(x, &input.update);
}

/// Runs `batch` on `path` and waits for its report; when it has more active features than the device has room for on the
/// sparse path, which changes nothing, again on the dense one.
///
/// # Errors
/// [`kernels::Error::Cuda`].
pub fn with_room<Sae: Dictionary + ?Sized>(
    sae: &mut Sae,
    path: Path,
    mut batch: impl FnMut(&mut Sae, Path),
) -> Result<Report, kernels::Error> {
    batch(sae, path);
    let report = sae.report(0)?;
    if !report.overflow {
        return Ok(report);
    }
    sae.release();
    batch(sae, Path::Dense);
    sae.report(0)
}

//! One training step: the algorithm.

use std::ops::Range;

use kernels::{AdamUpdate, Dictionary, Path, Report};

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

/// Runs the step `x → a → x̂ → g → ∂ → update` on the rows `x` and says what it gave. When a row or the gradient is not
/// finite the dictionary and the tally stay as they were and the report says so.
///
/// # Errors
/// [`kernels::Error::Cuda`].
pub fn step<Sae: Dictionary>(
    sae: &mut Sae,
    x: &Sae::Rows,
    tally: &mut Sae::Tally,
    input: &StepInput,
) -> Result<Report, kernels::Error> {
    with_room(input.path, |path| {
        sae.encode(x, path);
        sae.decode(x);
        sae.residual(x);
        sae.backward(x, input.lambda);
        sae.count(x, tally, input.counted.clone());
        sae.adam(x, &input.update);
        sae.report()
    })
}

/// Runs `batch` on `path`; when it has more active features than the device has room for on the sparse path, which changes
/// nothing, again on the dense one.
///
/// # Errors
/// Those of `batch`.
pub fn with_room(
    path: Path,
    mut batch: impl FnMut(Path) -> Result<Report, kernels::Error>,
) -> Result<Report, kernels::Error> {
    let report = batch(path)?;
    if report.overflow { batch(Path::Dense) } else { Ok(report) }
}

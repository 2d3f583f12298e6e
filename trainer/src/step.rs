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
/// finite the dictionary and the tally stay as they were and the report says so. A batch with more active features than the
/// device has room for on the sparse path takes the dense one.
///
/// # Errors
/// [`kernels::Error::Cuda`].
pub fn step<Sae: Dictionary>(
    sae: &mut Sae,
    x: &Sae::Rows,
    tally: &mut Sae::Tally,
    input: &StepInput,
) -> Result<Report, kernels::Error> {
    let report = step_on(sae, x, tally, input, input.path)?;
    if report.overflow {
        return step_on(sae, x, tally, input, Path::Dense);
    }
    Ok(report)
}

fn step_on<Sae: Dictionary>(
    sae: &mut Sae,
    x: &Sae::Rows,
    tally: &mut Sae::Tally,
    input: &StepInput,
    path: Path,
) -> Result<Report, kernels::Error> {
    sae.encode(x, path);
    sae.decode(x);
    sae.residual(x);
    sae.backward(x, input.lambda);
    sae.count(x, tally, input.counted.clone());
    sae.adam(x, &input.update);
    sae.report()
}

//! Why no law can be had of some runs.

use thiserror::Error;

/// A refusal, with what would do.
#[derive(Debug, Error, PartialEq)]
pub enum Error {
    /// A number of a run that no run can have.
    #[error("{run}: {name} must be {wanted}, and is {found}: leave the run out, or correct it")]
    Number {
        /// The run.
        run: String,
        /// What the number is.
        name: &'static str,
        /// What it may be.
        wanted: &'static str,
        /// What it is.
        found: f64,
    },
    /// Runs that cannot be compared.
    #[error(
        "runs differ in {name}, so their losses cannot be compared: {first} has {first_value}, {other} has {other_value}. Fit them \
         separately"
    )]
    Mixed {
        /// What they differ in.
        name: String,
        /// A run.
        first: String,
        /// What it has.
        first_value: String,
        /// A run that differs from it.
        other: String,
        /// What that has.
        other_value: String,
    },
    /// Not enough to tell five parameters.
    #[error(
        "{configurations} configurations over {budgets} budgets, with {features} different numbers of features and {steps} of steps: a \
         surface needs at least 6 over 2, with 3 of each. Run more sizes"
    )]
    TooFew {
        /// Pairs (F, S).
        configurations: usize,
        /// Budgets.
        budgets: usize,
        /// Different F.
        features: usize,
        /// Different S.
        steps: usize,
    },
    /// One of the terms is 0: there is no optimum.
    #[error(
        "the loss of these runs does not fall with {0}, once the other is given: no allocation is best. Try sizes further apart, and look \
         whether the runs had converged"
    )]
    NoOptimum(&'static str),
}

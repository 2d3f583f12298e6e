//! `sae scaling`.

mod cost;
mod fit;
mod next;
mod rate;
mod recommend;
mod rows;
mod written;

use crate::args::{Scaling, What};
use crate::failure::Failure;

/// Fits, or recommends.
pub fn run(args: &Scaling) -> Result<(), Failure> {
    match &args.what {
        What::Fit(args) => fit::run(args),
        What::Recommend(args) => match args.next {
            Some(count) => next::run(args, count as usize),
            None => recommend::run(args),
        },
    }
}

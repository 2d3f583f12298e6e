//! How many of the directions behind synthetic data a dictionary has found.

use kernels::ranks::Group;
use kernels::{Dictionary, Tensor};
use loader::Location;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::report::dot::dot;

/// The directions that synthetic rows are sums of.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Values in a direction.
    pub width: usize,
    /// `[N, width]`.
    pub directions: Vec<f32>,
    /// How often each direction occurs in the rows written, `[N]`.
    pub occurrences: Vec<u64>,
}

impl Truth {
    /// Reads the truth.safetensors that lies beside the shards of the first of `urls`, if they have one folder and it is
    /// there.
    ///
    /// # Errors
    /// Those of the store; [`Error::Weights`] when the file is not such a one.
    pub fn beside(urls: &[String]) -> Result<Option<Truth>, Error> {
        let Some(url) = urls.first() else { return Ok(None) };
        let Some(store) = Location::resolve(url)?.folder() else { return Ok(None) };
        match store.get("truth.safetensors") {
            Ok(bytes) => Truth::parse(&bytes).map(Some).ok_or_else(|| {
                Error::Weights(format!("{} is not a file of true directions", store.url_of("truth.safetensors")).into())
            }),
            Err(loader::Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Truth> {
        let file = SafeTensors::deserialize(bytes).ok()?;
        let (directions, occurrences) = (file.tensor("directions").ok()?, file.tensor("occurrences").ok()?);
        let &[n, width] = directions.shape() else { return None };
        let fits = directions.dtype() == Dtype::F32 && occurrences.dtype() == Dtype::U64 && occurrences.shape() == [n];
        (fits && width > 0).then(|| Truth {
            width,
            directions: bytemuck::pod_collect_to_vec(directions.data()),
            occurrences: bytemuck::pod_collect_to_vec(occurrences.data()),
        })
    }
}

/// A direction counts when it occurred at least this often in the rows trained on.
pub const LEAST_OCCURRENCES: f64 = 1000.0;

/// A direction is found when a decoder row has at least this cosine with it.
pub const FOUND_AT: f32 = 0.9;

/// What was found of the directions that occurred often enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Share whose best cosine over all decoder rows is at least [`FOUND_AT`].
    pub recovered: f64,
    /// Mean over directions of the best cosine: mean max cosine similarity.
    pub mmcs: f64,
    /// Directions that occurred at least [`LEAST_OCCURRENCES`] times.
    pub directions: usize,
}

/// Compares every decoder row with every direction that occurred at least [`LEAST_OCCURRENCES`] times in the rows
/// trained on; `seen` is the share of the written rows that was trained on, `ranks` hold the decoder rows. `None` when there
/// is no such direction.
///
/// # Errors
/// [`kernels::Error::Cuda`], [`kernels::Error::Peer`].
pub fn recovery(
    truth: &Truth,
    seen: f64,
    sae: &(impl Dictionary + ?Sized),
    ranks: &Group,
) -> Result<Option<Recovery>, kernels::Error> {
    const BLOCK: usize = 1024;
    let (width, features) = (truth.width, sae.shape().features);
    let often: Vec<&[f32]> = truth
        .directions
        .chunks_exact(width)
        .zip(&truth.occurrences)
        .filter(|(_, count)| **count as f64 * seen >= LEAST_OCCURRENCES)
        .map(|(direction_d, _)| direction_d)
        .collect();
    if often.is_empty() {
        return Ok(None);
    }
    let mut best = vec![-1.0f32; often.len()];
    let mut decoder_fd = vec![0.0f32; BLOCK.min(features) * width];
    for first in (0..features).step_by(BLOCK) {
        let rows = first..(first + BLOCK).min(features);
        let block_fd = &mut decoder_fd[..rows.len() * width];
        sae.read(Tensor::DecoderWeight, rows, block_fd)?;
        best.par_iter_mut().zip(&often).for_each(|(best, direction_d)| {
            let norm = dot(direction_d, direction_d).sqrt();
            for row_d in block_fd.chunks_exact(width) {
                let cosine = dot(row_d, direction_d) / (norm * dot(row_d, row_d).sqrt());
                // A row of zeros has no direction: its cosine is NaN, and max leaves NaN out.
                *best = best.max(cosine);
            }
        });
    }
    for theirs in ranks.gather(bytemuck::cast_slice(&best))? {
        let theirs: Vec<f32> = bytemuck::pod_collect_to_vec(&theirs);
        best.iter_mut().zip(theirs).for_each(|(best, theirs)| *best = best.max(theirs));
    }
    let found = best.iter().filter(|&&cosine| cosine >= FOUND_AT).count();
    Ok(Some(Recovery {
        recovered: found as f64 / best.len() as f64,
        mmcs: best.iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / best.len() as f64,
        directions: best.len(),
    }))
}

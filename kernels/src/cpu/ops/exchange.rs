//! Rows that the ranks of the data axis send each other: gradients to the rank that owns the feature, weights back to all.
//!
//! Only rows that a rank has touched travel, a round of 1,024 features of each owner at a time, so that messages stay small
//! beside the weights whatever the density. Sums add the ranks in their order: the same mesh gives the same bits.
//!
//! Bytes a rank sends: gradients `8·D` a touched row of features that it does not own; weights `8·D·(ranks − 1)` an updated
//! row of its own.

use std::ops::Range;

use rayon::prelude::*;

use super::backward::norm2;
use crate::Error;
use crate::cpu::engine::Engine;
use crate::cpu::memory::Buffer;
use crate::cpu::simd::{Kernel, Lanes};
use crate::cpu::weights::Weights;
use crate::mesh::Axes;

/// Features of an owner in a round.
const ROUND: usize = 1024;

/// The gradient of a batch as a rank has summed it over its own rows, feature by feature.
pub struct GradientRows<'a> {
    pub dec_fd: &'a mut [f32],
    pub enc_fd: &'a mut [f32],
    pub bias_f: &'a mut [f32],
    pub count_f: &'a mut [u32],
    pub stride: usize,
}

impl GradientRows<'_> {
    /// Sums the rows of this rank's own features over the data axis; the rows of others are of no use afterwards.
    ///
    /// # Errors
    /// Those of [`crate::ranks::Group::exchange`].
    pub fn sum(&mut self, axes: &Axes) -> Result<(), Error> {
        for round in rounds(axes, self.count_f.len()) {
            let messages = round.iter().map(|features| self.pack(features.clone())).collect();
            let own = round[axes.data.index()].clone();
            self.clear(own.clone());
            for message in axes.data.exchange(messages)? {
                self.add(&message, &own);
            }
        }
        Ok(())
    }

    /// The squared norms of the gradients of the features `own`.
    pub fn measure(&self, engine: &Engine, own: &Range<usize>, norm2_f: &mut [f64]) {
        let measure = |(f, norm2_f): (usize, &mut f64)| {
            let row = f * self.stride..(f + 1) * self.stride;
            let (dec, enc) = (&self.dec_fd[row.clone()], &self.enc_fd[row]);
            *norm2_f = match self.count_f[f] {
                0 => 0.0,
                _ => engine.isa.run(Norm2([dec, enc])) + f64::from(self.bias_f[f]) * f64::from(self.bias_f[f]),
            };
        };
        let owned = norm2_f[own.clone()].par_iter_mut().enumerate();
        engine.pool.install(|| owned.map(|(at, norm2)| (own.start + at, norm2)).for_each(measure));
    }

    /// Rows of the features that fired: feature, count, bias, decoder row, encoder row.
    fn pack(&self, features: Range<usize>) -> Vec<u8> {
        let mut message = Vec::new();
        for f in features.filter(|&f| self.count_f[f] > 0) {
            let row = f * self.stride..(f + 1) * self.stride;
            message.extend_from_slice(bytemuck::cast_slice(&[f as u32, self.count_f[f]]));
            message.extend_from_slice(bytemuck::bytes_of(&self.bias_f[f]));
            message.extend_from_slice(bytemuck::cast_slice(&self.dec_fd[row.clone()]));
            message.extend_from_slice(bytemuck::cast_slice(&self.enc_fd[row]));
        }
        message
    }

    fn clear(&mut self, features: Range<usize>) {
        let values = features.start * self.stride..features.end * self.stride;
        self.dec_fd[values.clone()].fill(0.0);
        self.enc_fd[values].fill(0.0);
        self.bias_f[features.clone()].fill(0.0);
        self.count_f[features].fill(0);
    }

    fn add(&mut self, message: &[u8], own: &Range<usize>) {
        let stride = self.stride;
        for entry in message.chunks_exact(4 * (3 + 2 * stride)) {
            let (head, rows) = entry.split_at(12);
            let [f, count] = [0, 4].map(|at| bytemuck::pod_read_unaligned::<u32>(&head[at..at + 4]));
            let f = f as usize;
            assert!(own.contains(&f), "a row of one's own feature");
            self.count_f[f] += count;
            self.bias_f[f] += bytemuck::pod_read_unaligned::<f32>(&head[8..]);
            let (dec, enc) = rows.split_at(4 * stride);
            for (sums, added) in [(&mut *self.dec_fd, dec), (&mut *self.enc_fd, enc)] {
                let sums = sums[f * stride..(f + 1) * stride].iter_mut();
                sums.zip(added.as_chunks().0).for_each(|(sum, bytes)| *sum += f32::from_ne_bytes(*bytes));
            }
        }
    }
}

struct Norm2<'a>([&'a [f32]; 2]);

impl Kernel for Norm2<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f64 {
        self.0.iter().map(|row| norm2(l, row)).sum()
    }
}

/// Sends the rows of the own features that `sends` names to the ranks that hold copies of them, and takes theirs. `took`
/// hears of every feature that came.
///
/// # Errors
/// Those of [`crate::ranks::Group::exchange`].
pub fn spread(
    axes: &Axes,
    weights: &mut Weights,
    sends: impl Fn(usize) -> bool,
    mut took: impl FnMut(&mut Weights, usize),
) -> Result<(), Error> {
    if axes.data.size() == 1 {
        return Ok(());
    }
    for round in rounds(axes, weights.features) {
        let own = axes.data.index();
        let message = pack_weights(weights, round[own].clone().filter(|&f| sends(f)));
        let messages = axes.data.gather(&message)?;
        for (from, message) in messages.iter().enumerate().filter(|&(from, _)| from != own) {
            for entry in message.chunks_exact(4 * (2 + 2 * weights.stride)) {
                let f = bytemuck::pod_read_unaligned::<u32>(&entry[..4]) as usize;
                assert!(round[from].contains(&f), "a row of the sender's own feature");
                unpack_weights(weights, f, &entry[4..]);
                took(weights, f);
            }
        }
    }
    Ok(())
}

/// Feature, bias, decoder row, encoder row.
fn pack_weights(weights: &Weights, features: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut message = Vec::new();
    for f in features {
        message.extend_from_slice(bytemuck::bytes_of(&(f as u32)));
        message.extend_from_slice(bytemuck::bytes_of(&weights.b_enc.value[f]));
        message.extend_from_slice(bytemuck::cast_slice(weights.w_dec.row(f)));
        message.extend_from_slice(bytemuck::cast_slice(weights.w_enc.row(f)));
    }
    message
}

fn unpack_weights(weights: &mut Weights, f: usize, entry: &[u8]) {
    let stride = weights.stride;
    let (bias, rows) = entry.split_at(4);
    weights.b_enc.value[f] = bytemuck::pod_read_unaligned(bias);
    let (dec, enc) = rows.split_at(4 * stride);
    let copy = |to: &mut Buffer<f32>, bytes: &[u8]| {
        bytemuck::cast_slice_mut(&mut to[f * stride..(f + 1) * stride]).copy_from_slice(bytes);
    };
    copy(&mut weights.w_dec.value, dec);
    copy(&mut weights.w_enc.value, enc);
}

/// Round by round the features of every data rank, in a shard of `features`. All ranks make as many rounds.
fn rounds(axes: &Axes, features: usize) -> impl Iterator<Item = Vec<Range<usize>>> {
    let owned: Vec<_> = (0..axes.data.size()).map(|member| axes.owned_by(member, features)).collect();
    let rounds = owned.iter().map(|owned| owned.len().div_ceil(ROUND)).max().unwrap_or(0);
    (0..rounds).map(move |round| {
        let part = |owned: &Range<usize>| {
            let at = |round: usize| (owned.start + round * ROUND).min(owned.end);
            at(round)..at(round + 1)
        };
        owned.iter().map(part).collect()
    })
}

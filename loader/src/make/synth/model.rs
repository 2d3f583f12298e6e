//! What a row is: a Poisson number of events, each of which makes a direction (or some of a group's) fire; a parent brings
//! one of its children along; magnitudes, noise and a heavy-tailed factor on top.
//!
//! Thinning a Poisson process gives independent firing with probability 1 − exp(−rate), so expected frequencies are exact.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::weighted::WeightedAliasIndex;
use rand_distr::{Distribution, Exp1, Poisson, StandardNormal};

use super::spec::{GROUP, Spec};
use crate::stream::permutation::{Permutation, key};
use crate::{Error, Result};

/// Rows generated from one ChaCha stream: part of what a spec means.
pub(super) const BLOCK_ROWS: u64 = 1024;

/// What a spec expands to.
pub(super) struct Model {
    spec: Spec,
    /// [features, width], unit rows.
    pub(super) directions_fd: Vec<f32>,
    /// Expected share of rows in which a direction fires.
    pub(super) frequencies: Vec<f64>,
    pub(super) parents: Vec<i64>,
    /// Draws an event: a direction, or (from `features` on) a group.
    events: WeightedAliasIndex<f64>,
    count: Poisson<f64>,
    /// For each group its members with their probability of firing in an event of the group.
    groups: Vec<Vec<(usize, f64)>>,
    parent_count: usize,
}

/// Some rows, and the directions that fired in them.
pub(super) struct Block {
    pub(super) rows: Vec<u8>,
    pub(super) fired: Vec<u32>,
}

impl Model {
    pub(super) fn new(spec: &Spec) -> Result<Self> {
        let (features, parent_count) = (spec.features, spec.parent_count());
        let children = parent_count..parent_count * (1 + spec.children);
        let mut parents = vec![-1i64; features];
        for child in children.clone() {
            parents[child] = ((child - parent_count) / spec.children) as i64;
        }
        let tops: Vec<usize> = (0..features).filter(|i| !children.contains(i)).collect();
        let ranked = ranked(spec, &tops);
        let weight = |rank: usize| ((rank + 1) as f64).powf(-spec.zipf);
        // A parent brings a child along, so it counts twice towards the row's average.
        let counts = |i: usize| if i < parent_count { 2.0 } else { 1.0 };
        let total: f64 = ranked.iter().enumerate().map(|(rank, &i)| weight(rank) * counts(i)).sum();
        let mut rates = vec![0f64; features];
        for (rank, &i) in ranked.iter().enumerate() {
            rates[i] = spec.active * weight(rank) / total;
        }
        let mut frequencies: Vec<f64> = rates.iter().map(|rate| -(-rate).exp_m1()).collect();
        for child in children {
            frequencies[child] = frequencies[parents[child] as usize] / spec.children as f64;
        }
        let (groups, weights) = groups(spec, &ranked, &rates);
        let impossible = |what: &str| Error::Arguments(format!("synth: impossible rates: {what}"));
        let count = Poisson::new(weights.iter().sum()).map_err(|e| impossible(&e.to_string()))?;
        let events = WeightedAliasIndex::new(weights).map_err(|e| impossible(&e.to_string()))?;
        let directions_fd = directions(spec);
        Ok(Model { spec: spec.clone(), directions_fd, frequencies, parents, events, count, groups, parent_count })
    }

    /// The rows of one block.
    pub(super) fn block(&self, block: u64) -> Block {
        let spec = &self.spec;
        let rows = BLOCK_ROWS.min(spec.rows - block * BLOCK_ROWS) as usize;
        let mut rng = generator(spec.seed, spec.set.wrapping_add(1), block);
        let row_bytes = spec.width * spec.dtype.size();
        let mut made = Block { rows: vec![0; rows * row_bytes], fired: Vec::new() };
        let (mut row_f32, mut firing) = (vec![0f32; spec.width], Vec::new());
        let noise = (spec.noise / (spec.width as f64).sqrt()) as f32;
        for out in made.rows.chunks_exact_mut(row_bytes) {
            self.fire(&mut rng, &mut firing);
            row_f32.fill(0.0);
            for &feature in &firing {
                let magnitude = 1.0 + 0.5 * Distribution::<f32>::sample(&Exp1, &mut rng);
                let direction = &self.directions_fd[feature as usize * spec.width..][..spec.width];
                row_f32.iter_mut().zip(direction).for_each(|(x, d)| *x += magnitude * d);
            }
            let tail: f32 = StandardNormal.sample(&mut rng);
            let factor = (spec.norm_tail as f32 * tail).exp();
            for x in &mut row_f32 {
                let normal: f32 = if noise > 0.0 { StandardNormal.sample(&mut rng) } else { 0.0 };
                *x = factor * (*x + noise * normal);
            }
            spec.dtype.from_f32(&row_f32, out);
            made.fired.extend_from_slice(&firing);
        }
        made
    }

    /// The directions that fire in one row, ascending.
    fn fire(&self, rng: &mut ChaCha8Rng, firing: &mut Vec<u32>) {
        let features = self.spec.features;
        firing.clear();
        for _ in 0..self.count.sample(rng) as u64 {
            match self.events.sample(rng) {
                feature if feature < features => firing.push(feature as u32),
                group => {
                    let members = self.groups[group - features].iter();
                    firing.extend(members.filter_map(|&(i, p)| (uniform(rng) < p).then_some(i as u32)));
                }
            }
        }
        firing.sort_unstable();
        firing.dedup();
        for k in 0..firing.partition_point(|&f| (f as usize) < self.parent_count) {
            let child = (uniform(rng) * self.spec.children as f64) as usize;
            firing.push((self.parent_count + firing[k] as usize * self.spec.children + child) as u32);
        }
        firing.sort_unstable();
    }
}

/// The generator of one block: addressable, so that any thread can make any block.
fn generator(seed: u64, purpose: u64, block: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(key(&[seed, purpose]));
    rng.set_stream(block);
    rng
}

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn directions(spec: &Spec) -> Vec<f32> {
    let mut rng = generator(spec.seed, 0, 0);
    let mut directions_fd: Vec<f32> =
        (0..spec.features * spec.width).map(|_| StandardNormal.sample(&mut rng)).collect();
    for row in directions_fd.chunks_exact_mut(spec.width) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter_mut().for_each(|x| *x /= norm);
    }
    directions_fd
}

/// The directions that are no children, from frequent to rare, in an order of the seed.
fn ranked(spec: &Spec, tops: &[usize]) -> Vec<usize> {
    let order = Permutation::new(key(&[spec.seed, 0x72616e6b]), tops.len() as u64);
    (0..tops.len() as u64).map(|rank| tops[order.apply(rank) as usize]).collect()
}

/// The groups, and the weights of all events: each direction's own, then the groups'.
fn groups(spec: &Spec, ranked: &[usize], rates: &[f64]) -> (Vec<Vec<(usize, f64)>>, Vec<f64>) {
    let mut weights = rates.to_vec();
    let mut groups = Vec::new();
    let blocks = ranked.len() / GROUP;
    for g in 0..spec.groups {
        // Groups are spread over the ranks; members are neighbours in rank, so they are about equally frequent.
        let members = &ranked[(g * blocks / spec.groups) * GROUP..][..GROUP];
        let event = members.iter().map(|&i| rates[i]).fold(0.0, f64::max);
        groups.push(members.iter().map(|&i| (i, spec.group_correlation * rates[i] / event)).collect());
        members.iter().for_each(|&i| weights[i] *= 1.0 - spec.group_correlation);
        weights.push(event);
    }
    (groups, weights)
}

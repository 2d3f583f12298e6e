//! What synthetic activations are made of.

use serde::{Deserialize, Serialize};

use crate::parquet::metadata;
use crate::{Dtype, Error, Result};

/// Directions of a correlated group.
pub(super) const GROUP: usize = 8;

/// What synthetic activations are made of. Everything is a function of these values: thread counts change nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// True directions.
    #[serde(deserialize_with = "crate::number::count")]
    pub features: usize,
    /// Numbers per row.
    #[serde(deserialize_with = "crate::number::count")]
    pub width: usize,
    /// Rows to write.
    #[serde(deserialize_with = "crate::number::count")]
    pub rows: u64,
    /// Shards to spread them over.
    #[serde(deserialize_with = "crate::number::count")]
    pub shards: usize,
    /// Stored format.
    pub dtype: Dtype,
    /// Directions active in a row, on average.
    pub active: f64,
    /// Frequencies fall as rank^-zipf.
    pub zipf: f64,
    /// Groups of directions that fire together (0: none).
    #[serde(deserialize_with = "crate::number::count")]
    pub groups: usize,
    /// Share of a group's firing that is shared.
    pub group_correlation: f64,
    /// Share of the directions that are parents with children that fire only with them (0: none).
    pub parents: f64,
    /// Children of a parent.
    #[serde(deserialize_with = "crate::number::count")]
    pub children: usize,
    /// Standard deviation of isotropic noise, relative to a unit direction.
    pub noise: f64,
    /// Shape of a lognormal factor on a row's norm (0: none).
    pub norm_tail: f64,
    /// Seed.
    pub seed: u64,
    /// Which disjoint set of rows from the same directions: 0 for training, 1 for evaluation.
    pub set: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            features: 1024,
            width: 128,
            rows: 1 << 20,
            shards: 4,
            dtype: Dtype::F16,
            active: 16.0,
            zipf: 0.7,
            groups: 0,
            group_correlation: 0.5,
            parents: 0.0,
            children: 4,
            noise: 0.02,
            norm_tail: 0.0,
            seed: 0,
            set: 0,
        }
    }
}

impl Spec {
    /// Refuses impossible values, naming the key.
    pub fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::Arguments(format!("synth: {problem}")));
        let share = |x: f64| (0.0..=1.0).contains(&x);
        if self.features == 0 || self.width == 0 || self.rows == 0 || self.shards == 0 {
            return fail("features, width, rows and shards must be at least 1".into());
        }
        if !(self.active > 0.0 && self.active <= self.features as f64) {
            return fail(format!("active = {} must lie between 0 and features = {}", self.active, self.features));
        }
        if !share(self.group_correlation) || !share(self.parents) || (self.parents > 0.0 && self.children == 0) {
            return fail("group_correlation and parents are shares between 0 and 1, and parents need children".into());
        }
        let numbers = [self.zipf, self.noise, self.norm_tail];
        if !numbers.into_iter().all(|x| x.is_finite() && x >= 0.0) {
            return fail("zipf, noise and norm_tail must be numbers and not negative".into());
        }
        if self.features.saturating_mul(self.width) > 1 << 32 || self.children > self.features {
            return fail("features × width must be at most 2^32, and children at most features".into());
        }
        if self.width > metadata::MAX_WIDTH {
            return fail(format!("width = {} must be at most {}", self.width, metadata::MAX_WIDTH));
        }
        let tops = self.features - self.parent_count() * self.children;
        if self.groups.saturating_mul(GROUP) > tops {
            return fail(format!("{} groups of {} need more than {tops} directions", self.groups, GROUP));
        }
        Ok(())
    }

    /// Directions that have children.
    pub(super) fn parent_count(&self) -> usize {
        if self.children == 0 { 0 } else { (self.parents * self.features as f64) as usize / (1 + self.children) }
    }
}

//! A mesh of data × feature ranks: who holds which features and sees which rows.
//!
//! Ranks are counted along the feature axis first, `rank = d · feature + f`, so that the ranks that share a batch stand
//! beside each other. The unit of sharding is a tile of 128 features. The `f`-th rank of every row of the mesh holds the
//! `f`-th shard of the features; inside a shard the tiles are dealt out over the data axis: a rank *owns* those for which it
//! keeps the optimiser's state, makes the update, and writes checkpoints. Every feature is owned by one rank.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use crate::ranks::{Group, Ranks};

/// Features in the unit of sharding.
pub const TILE: usize = 128;

/// Ranks along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Slices of the batch.
    pub data: usize,
    /// Shards of the features.
    pub feature: usize,
}

impl Mesh {
    /// One rank.
    pub const ONE: Mesh = Mesh { data: 1, feature: 1 };

    /// Ranks in it.
    pub fn ranks(self) -> usize {
        self.data * self.feature
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.data, self.feature)
    }
}

impl FromStr for Mesh {
    type Err = String;

    /// `DxF`.
    fn from_str(text: &str) -> Result<Self, String> {
        let axis = |text: &str| text.parse().ok().filter(|&ranks| ranks > 0);
        let parsed = text.split_once('x').and_then(|(data, feature)| Some((axis(data)?, axis(feature)?)));
        let (data, feature) =
            parsed.ok_or_else(|| format!("{text} is no mesh: write DATAxFEATURE, for example 2x4"))?;
        Ok(Mesh { data, feature })
    }
}

/// A rank's place in a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The whole.
    pub mesh: Mesh,
    /// Counted along the feature axis first.
    pub rank: usize,
}

impl Place {
    /// Which slice of the batch.
    pub fn data(self) -> usize {
        self.rank / self.mesh.feature
    }

    /// Which shard of the features.
    pub fn feature(self) -> usize {
        self.rank % self.mesh.feature
    }

    /// The features of this rank's shard, of `features` in all.
    pub fn shard(self, features: usize) -> Range<usize> {
        deal(0..features, self.feature(), self.mesh.feature)
    }

    /// The features that member `member` of the data axis owns, in a shard of `features`, counted from its start.
    pub fn owned_by(self, member: usize, features: usize) -> Range<usize> {
        deal(0..features, member, self.mesh.data)
    }

    /// The features of its shard that this rank owns; may be none when tiles are few.
    pub fn owned(self, features: usize) -> Range<usize> {
        deal(self.shard(features), self.data(), self.mesh.data)
    }
}

/// Part `index` of `parts` of the features `of`, which begin at a tile, in whole tiles.
fn deal(of: Range<usize>, index: usize, parts: usize) -> Range<usize> {
    let tiles = of.len().div_ceil(TILE);
    let at = |index: usize| (of.start + tiles * index / parts * TILE).min(of.end);
    at(index)..at(index + 1)
}

/// The groups in which a rank of a mesh takes part.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Where it stands.
    pub place: Place,
    /// All ranks.
    pub all: Group,
    /// Those that hold the same features and see other rows.
    pub data: Group,
    /// Those that see the same rows and hold other features.
    pub feature: Group,
}

impl Axes {
    /// One rank that does everything.
    pub fn alone() -> Self {
        let place = Place { mesh: Mesh::ONE, rank: 0 };
        Axes { place, all: Group::alone(), data: Group::alone(), feature: Group::alone() }
    }

    /// The place of `ranks` in `mesh`.
    ///
    /// # Panics
    /// When the mesh has another number of ranks.
    pub fn of(ranks: &Arc<dyn Ranks>, mesh: Mesh) -> Self {
        assert_eq!(ranks.size(), mesh.ranks(), "ranks of the mesh");
        let place = Place { mesh, rank: ranks.rank() };
        let group = |members: Vec<usize>| Group::of(ranks.clone(), members);
        Axes {
            place,
            all: group((0..mesh.ranks()).collect()),
            data: group((0..mesh.data).map(|d| d * mesh.feature + place.feature()).collect()),
            feature: group((0..mesh.feature).map(|f| place.data() * mesh.feature + f).collect()),
        }
    }

    /// See [`Place::owned_by`].
    pub fn owned_by(&self, member: usize, features: usize) -> Range<usize> {
        self.place.owned_by(member, features)
    }

    /// [`Axes::owned_by`] for this rank.
    pub fn owned(&self, features: usize) -> Range<usize> {
        self.owned_by(self.place.data(), features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_owned_once_and_shards_begin_at_tiles() {
        for (data, feature) in [(1, 1), (2, 1), (1, 3), (2, 4), (5, 2)] {
            let mesh = Mesh { data, feature };
            for features in [128, 512, 700, 128 * 17 + 5] {
                let places = || (0..mesh.ranks()).map(|rank| Place { mesh, rank });
                let mut owner = vec![0; features];
                for place in places() {
                    let (shard, owned) = (place.shard(features), place.owned(features));
                    assert!(owned.is_empty() || (shard.start <= owned.start && owned.end <= shard.end));
                    assert!(shard.start.is_multiple_of(TILE) || shard.is_empty(), "{shard:?}");
                    owned.for_each(|f| owner[f] += 1);
                }
                assert!(owner.iter().all(|&owners| owners == 1), "{mesh} with {features} features");
            }
        }
    }

    #[test]
    fn a_mesh_is_written_as_data_by_feature() {
        assert_eq!("2x4".parse(), Ok(Mesh { data: 2, feature: 4 }));
        assert_eq!(Mesh { data: 2, feature: 4 }.to_string(), "2x4");
        for wrong in ["", "8", "0x4", "2x", "2x4x1", "-1x2"] {
            assert!(wrong.parse::<Mesh>().is_err(), "{wrong}");
        }
    }
}

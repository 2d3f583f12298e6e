//! What the ranks of a mesh send each other in a step, and the mesh that sends least.
//!
//! Per rank and step, with d × f ranks, b = B/d rows seen, and U of its F/f features touched:
//!
//! | what | bytes |
//! |---|---|
//! | rows, gathered over the feature axis | s·b·D·(f−1)/f, s bytes a stored value |
//! | x̂, summed over the feature axis | 8·b·D·(f−1)/f |
//! | gradient rows, to their owners on the data axis | 8·U·D·(d−1)/d |
//! | updated weights, back to all | 8·R·D·(d−1)/d, R = F/f with dense Adam, else the rows that any rank has touched |
//!
//! `U = F/f · (1 − (1 − L0/F)^b)` when features fire alike; real ones fire unevenly and touch fewer rows. Not counted, since they do not grow
//! with D: what each feature has fired, with its bias 8 bytes and on GPUs a bit for each other data rank; and the roll call.

use kernels::cuda;
use kernels::mesh::{Mesh, TILE};

use crate::Error;
use crate::recipe::{Adam, Recipe};

/// Active features of a row that are assumed before any was seen.
const EXPECTED_L0: f64 = 100.0;

/// Bytes that a rank sends in a step, for each value of a row's width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Stored rows.
    pub rows: f64,
    /// Parts of x̂ and their sums.
    pub x_hat: f64,
    /// Gradient rows.
    pub gradient: f64,
    /// Updated weights.
    pub weights: f64,
}

impl Traffic {
    /// Of `recipe` on `mesh`, with rows stored in `stored` bytes a value.
    pub fn of(recipe: &Recipe, mesh: Mesh, stored: f64) -> Traffic {
        let (d, f) = (mesh.data as f64, mesh.feature as f64);
        let (features, batch) = (recipe.sae.features as f64, recipe.train.batch as f64);
        let touched = |rows| features / f * touched_share(recipe, EXPECTED_L0, rows);
        let updated = if recipe.train.adam == Adam::Dense { features / f } else { touched(batch) };
        let (on_features, on_data) = ((f - 1.0) / f, (d - 1.0) / d);
        Traffic {
            rows: stored * batch / d * on_features,
            x_hat: 8.0 * batch / d * on_features,
            gradient: 8.0 * touched(batch / d) * on_data,
            weights: 8.0 * updated * on_data,
        }
    }

    /// Between GPUs, whose gradient rows are sent twice where `train.dense_bytes` has no room for one round of them.
    pub fn between_gpus(recipe: &Recipe, mesh: Mesh, stored: f64, width: usize) -> Traffic {
        let once = Traffic::of(recipe, mesh, stored);
        let room = cuda::rows_in_a_round(mesh.data, width, recipe.train.dense_bytes as usize);
        let owned = recipe.sae.features as f64 / mesh.ranks() as f64;
        let of_owner = owned * touched_share(recipe, EXPECTED_L0, recipe.train.batch as f64);
        let times = if of_owner > room as f64 { 2.0 } else { 1.0 };
        Traffic { gradient: times * once.gradient, ..once }
    }

    /// Bytes of all four together.
    pub fn total(self) -> f64 {
        self.rows + self.x_hat + self.gradient + self.weights
    }
}

/// Share of the features that so many rows touch, each with `l0` active ones, when features fire alike.
pub fn touched_share(recipe: &Recipe, l0: f64, rows: f64) -> f64 {
    1.0 - (1.0 - (l0 / recipe.sae.features as f64).min(1.0)).powf(rows)
}

/// That every rank of `mesh` gets features and rows.
///
/// # Errors
/// [`Error::Recipe`] that says how many there may be.
pub fn check(recipe: &Recipe, mesh: Mesh) -> Result<(), Error> {
    let (features, batch) = (recipe.sae.features, recipe.train.batch);
    let tiles = features.div_ceil(TILE);
    if mesh.feature > tiles {
        return Err(Error::Recipe(format!(
            "a mesh of {mesh} has more ranks on its feature axis than sae.features = {features} has tiles of {TILE} features: use at \
             most {tiles} there"
        )));
    }
    if mesh.ranks() > batch {
        return Err(Error::Recipe(format!(
            "a mesh of {mesh} has more ranks than train.batch = {batch} has rows: use at most {batch}"
        )));
    }
    Ok(())
}

/// The mesh of so many ranks that sends the fewest bytes; of equals, the one with more shards of the features, whose ranks hold less.
/// `None` when no mesh gives every rank features and rows.
pub fn choose(recipe: &Recipe, ranks: usize) -> Option<Mesh> {
    let possible = (1..=ranks).filter(|feature| ranks.is_multiple_of(*feature)).rev();
    possible.map(|feature| Mesh { data: ranks / feature, feature }).filter(|mesh| check(recipe, *mesh).is_ok()).min_by(
        |a, b| {
            let total = |mesh: &Mesh| Traffic::of(recipe, *mesh, 2.0).total();
            total(a).total_cmp(&total(b))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(features: usize, batch: usize) -> Recipe {
        let text =
            format!("[data]\ntrain = 'x'\n[sae]\nfeatures = {features}\n[train]\nbatch = {batch}\n[run]\ndir = 'y'\n");
        toml::from_str(&text).expect("a recipe")
    }

    #[test]
    fn features_are_sharded_first() {
        let paper = recipe(1 << 20, 8192);
        assert_eq!(choose(&paper, 8), Some(Mesh { data: 1, feature: 8 }));
        // 8·2^20·2 bytes a unit of width for the gradient and the weights of two replicas, 10·8192 for the rows of 8 shards.
        let replicas = Traffic::of(&paper, Mesh { data: 2, feature: 1 }, 2.0);
        assert!(replicas.total() > 20.0 * Traffic::of(&paper, Mesh { data: 1, feature: 8 }, 2.0).total());
        assert_eq!(Traffic::of(&paper, Mesh::ONE, 2.0).total(), 0.0);
        // 280,000 touched rows an owner, and room for 4,096 at D = 4096.
        let mesh = Mesh { data: 2, feature: 1 };
        let between_gpus = |width| Traffic::between_gpus(&paper, mesh, 2.0, width);
        assert_eq!(between_gpus(4096).gradient, 2.0 * replicas.gradient);
        assert_eq!(Traffic { gradient: replicas.gradient, ..between_gpus(4096) }, replicas);
        assert_eq!(between_gpus(32), replicas);
    }

    #[test]
    fn a_small_dictionary_on_many_rows_goes_data_parallel() {
        // 2·8·256 bytes for the rows of two tiles, 10·4096/8 for those of the batch.
        assert_eq!(choose(&recipe(256, 4096), 8), Some(Mesh { data: 8, feature: 1 }));
        assert_eq!(choose(&recipe(256, 4), 8), None, "fewer rows than ranks");
    }
}

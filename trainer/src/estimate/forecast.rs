//! What a run would take on so many GPUs: memory, time, traffic, and what bounds it. Estimated from counts of bytes and operations and
//! from data sheets; nothing in it was measured.
//!
//! On a mesh of d × f ranks a rank sees b = B/d rows and holds F/f features, of which it owns F/(d·f). With n = b·L0/f active pairs
//! and U touched features a rank, P bytes a value that GEMMs read and c bytes of Adam's traffic a parameter:
//!
//! | part | seconds |
//! |---|---|
//! | encode | 2·b·(F/f)·D / GEMMs |
//! | decode | (P·n·D + 4·b·D) / memory |
//! | backward | 4·P·n·D / memory (rows of g and x, gathered twice: the gradient is made again for the update) |
//! | adam | c·2·D·R / memory, R the owned rows that are updated |
//! | exchange | (rows + gradient + weights of [`Traffic`]) / link, and what is waited for of x̂ |
//!
//! Floors add up, since the parts of a step follow each other, but for the sum of x̂: a batch is cut into k slices, and while one is
//! encoded and decoded, x̂ of the one before is on the link. With C = encode + decode, which share the GPU, and X = the x̂ of
//! [`Traffic`] / link, both alike in all slices, the GPU waits for the last slice at least, and for what the link still has to
//! send when the k − 1 slices behind the first are made:
//!
//! > waited for of x̂ = max(X/k, X − C·(k−1)/k)
//!
//! Sending also takes some of the GPU, smaller messages are slower, and W_enc is read once for each slice: none of that is
//! estimated. A step is expected to take [`EXPECTED`] of its floor's speed.

use kernels::cuda::{self, Precision};
use kernels::mesh::{Mesh, Place};
use kernels::{Bytes, Purpose, Shape};

use crate::ranks::communication::{Traffic, touched_share};
use crate::recipe::{Adam, Recipe};

/// Share of the floor's speed that is counted on: GEMMs by `mma.sync` reach about 0.6 of a Hopper GPU's rate.
pub const EXPECTED: f64 = 0.6;

/// Memory of a GPU that a run cannot have: the driver's, the kernels' own, and what is lost between blocks.
const UNUSABLE: f64 = 0.04;

/// GPUs that share the fast links of one machine.
pub const IN_A_MACHINE: usize = 8;

/// A GPU, by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// As `--gpu` has it.
    pub name: &'static str,
    /// Memory, in bytes.
    pub memory: f64,
    /// FLOP a second of dense GEMMs in bf16.
    pub flops: f64,
    /// Bytes of its memory a second.
    pub bandwidth: f64,
    /// Bytes a second to the others in its machine, one way.
    pub link: f64,
    /// Bytes a second to other machines, one way: 400 Gbit/s a GPU, or 200.
    pub network: f64,
}

/// The GPUs that are known.
pub const GPUS: [Gpu; 4] = [
    Gpu { name: "a100", memory: 80e9, flops: 312e12, bandwidth: 2.0e12, link: 300e9, network: 25e9 },
    Gpu { name: "h100", memory: 80e9, flops: 989e12, bandwidth: 3.35e12, link: 450e9, network: 50e9 },
    Gpu { name: "h200", memory: 141e9, flops: 989e12, bandwidth: 4.8e12, link: 450e9, network: 50e9 },
    Gpu { name: "b200", memory: 180e9, flops: 2250e12, bandwidth: 7.7e12, link: 900e9, network: 50e9 },
];

/// The data of a run, as far as its costs go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Rows trained on.
    pub rows: u64,
    /// `D`.
    pub width: usize,
    /// Bytes of a stored value.
    pub stored: usize,
    /// Active features of a row.
    pub l0: f64,
}

/// What one rank holds at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Weights of its shard, with the copies that GEMMs read.
    pub weights: u64,
    /// Moments of what it owns, and clocks.
    pub moments: u64,
    /// Rows, lists, gradients, and all other scratch of a step.
    pub step: u64,
}

impl RankMemory {
    /// Of a rank of `mesh`.
    pub fn of(recipe: &Recipe, mesh: Mesh, width: usize, precision: Precision) -> RankMemory {
        // The last rank's shard is as large as any, but for a part of a tile.
        let place = Place { mesh, rank: mesh.ranks() - 1 };
        let shape = Shape {
            width,
            features: place.shard(recipe.sae.features).len().max(1),
            batch: recipe.train.batch.div_ceil(mesh.data),
            dense_bytes: recipe.train.dense_bytes as usize,
        };
        let bytes = |purpose| cuda::bytes(shape, purpose, precision, place);
        let (training, looking) = (bytes(Purpose::Training), bytes(Purpose::Evaluation));
        let moments = training.weights.saturating_sub(looking.weights);
        RankMemory { weights: looking.weights, moments, step: Bytes { weights: 0, ..training }.total() }
    }

    /// Bytes of all three together.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.moments).saturating_add(self.step)
    }

    /// Whether a GPU has room for it.
    pub fn fits(self, gpu: &Gpu) -> bool {
        (self.total() as f64) < gpu.memory * (1.0 - UNUSABLE)
    }
}

/// Seconds of a step's parts at the least, on every rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// GEMMs of the encoder.
    pub encode: f64,
    /// Gathers of the decoder.
    pub decode: f64,
    /// Gathers of the gradient.
    pub backward: f64,
    /// Weights and moments through memory.
    pub adam: f64,
    /// Between ranks, while the GPU waits.
    pub exchange: f64,
    /// Between ranks, while the GPU multiplies: no part of the sum.
    pub hidden: f64,
}

impl Floor {
    /// Of a step of `recipe` on `mesh`.
    pub fn of(recipe: &Recipe, mesh: Mesh, rows: &Workload, precision: Precision, gpu: &Gpu) -> Floor {
        let (d, f) = (mesh.data as f64, mesh.feature as f64);
        let (width, features) = (rows.width as f64, recipe.sae.features as f64);
        let seen = recipe.train.batch as f64 / d;
        let (pairs, value) = (seen * rows.l0 / f, precision.bytes() as f64);
        let touched = touched_share(recipe, rows.l0, recipe.train.batch as f64);
        let updated = features / (d * f) * if recipe.train.adam == Adam::Dense { 1.0 } else { touched };
        let of_adam = cuda::cost::adam(precision, rows.width, updated.ceil() as usize);
        let link = if mesh.ranks() <= IN_A_MACHINE { gpu.link } else { gpu.network };
        let encode = 2.0 * seen * features / f * width / gpu.flops;
        let decode = (value * pairs * width + 4.0 * seen * width) / gpu.bandwidth;
        let sent = Traffic::between_gpus(recipe, mesh, rows.stored as f64, rows.width);
        let (slices, x_hat) = (cuda::slices(seen as usize) as f64, sent.x_hat * width / link);
        let waited = waited_for(x_hat, encode + decode, slices);
        Floor {
            encode,
            decode,
            backward: 4.0 * value * pairs * width / gpu.bandwidth,
            adam: of_adam.bytes as f64 / gpu.bandwidth,
            exchange: (sent.total() - sent.x_hat) * width / link + waited,
            hidden: x_hat - waited,
        }
    }

    /// Names and seconds of what follows each other.
    pub fn parts(self) -> [(&'static str, f64); 5] {
        let Floor { encode, decode, backward, adam, exchange, hidden: _ } = self;
        [("encode", encode), ("decode", decode), ("backward", backward), ("adam", adam), ("exchange", exchange)]
    }

    /// Seconds of all parts together.
    pub fn total(self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// What a GPU waits for of `link` seconds on the link, when so many slices take `gpu` seconds on the GPU before they go there.
fn waited_for(link: f64, gpu: f64, slices: f64) -> f64 {
    (link / slices).max(link - gpu * (slices - 1.0) / slices)
}

/// The fewest GPUs, features sharded alone, of which each has room for its part; `None` when even a tile of features a GPU is too
/// much.
pub fn fewest(recipe: &Recipe, width: usize, precision: Precision, gpu: &Gpu) -> Option<usize> {
    let fits =
        |feature: &usize| RankMemory::of(recipe, Mesh { data: 1, feature: *feature }, width, precision).fits(gpu);
    (1..=recipe.sae.features.div_ceil(kernels::mesh::TILE)).find(fits)
}

#[cfg(test)]
mod tests {
    use kernels::cuda::Moments;

    use super::*;

    fn recipe(features: usize) -> Recipe {
        let text =
            format!("[data]\ntrain = 'x'\n[sae]\nfeatures = {features}\n[train]\nbatch = 8192\n[run]\ndir = 'y'\n");
        toml::from_str(&text).expect("a recipe")
    }

    const H200: Gpu = GPUS[2];

    #[test]
    fn floors_are_those_of_the_formulas() {
        let rows = Workload { rows: 1 << 30, width: 2048, stored: 2, l0: 100.0 };
        let mixed = Precision::Mixed(Moments::F32);
        let floor = Floor::of(&recipe(1 << 20), Mesh::ONE, &rows, mixed, &H200);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-3 * b;
        assert!(near(floor.encode, 2.0 * 8192.0 * 1048576.0 * 2048.0 / 989e12), "{floor:?}");
        assert!(near(floor.decode, (2.0 * 819_200.0 * 2048.0 + 4.0 * 8192.0 * 2048.0) / 4.8e12), "{floor:?}");
        // 26 bytes a parameter.
        assert!(near(floor.adam, 26.0 * 2.0 * 1048576.0 * 2048.0 / 4.8e12), "{floor:?}");
        assert_eq!(floor.exchange, 0.0);
        let eight = Floor::of(&recipe(1 << 20), Mesh { data: 1, feature: 8 }, &rows, mixed, &H200);
        assert!(near(eight.encode, floor.encode / 8.0) && eight.exchange > 0.0, "{eight:?}");
        // Of x̂ the last of four slices; of the rows all.
        let (sent, a_value) = (8192.0 * 2048.0 * 7.0 / 8.0, 450e9);
        assert!(near(eight.exchange, (2.0 + 8.0 / 4.0) * sent / a_value), "{eight:?}");
        assert!(near(eight.hidden, 8.0 * 3.0 / 4.0 * sent / a_value), "{eight:?}");
    }

    /// 16 ranks, 2 × 8, on two machines: every part by hand.
    #[test]
    fn floors_of_several_machines_divide_batch_and_features() {
        let rows = Workload { rows: 1 << 30, width: 2048, stored: 2, l0: 100.0 };
        let mixed = Precision::Mixed(Moments::F32);
        let of = |data, feature| Floor::of(&recipe(1 << 20), Mesh { data, feature }, &rows, mixed, &H200);
        let near = |name: &str, found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-3 * expected, "{name}: {found} and {expected}");
        };
        let floor = of(2, 8);
        // 4,096 rows and 131,072 features a rank, 51,200 active pairs, 65,536 owned rows of each matrix.
        near("encode", floor.encode, 2.0 * 4096.0 * 131_072.0 * 2048.0 / 989e12);
        near("decode", floor.decode, (2.0 * 51_200.0 * 2048.0 + 4.0 * 4096.0 * 2048.0) / 4.8e12);
        near("backward", floor.backward, 4.0 * 2.0 * 51_200.0 * 2048.0 / 4.8e12);
        near("adam", floor.adam, 26.0 * 2.0 * 65_536.0 * 2048.0 / 4.8e12);
        // Rows and x̂ over eight GPUs, of which the last of four slices is waited for; a rank touches 1 − e^(−0.390625) = 0.3234 of
        // its features, in two rounds, since 35,500 touched rows of an owner do not fit into room for 8,192; all weights come back.
        let features = 131_072.0;
        let values =
            (2.0 + 8.0 / 4.0) * 4096.0 * 7.0 / 8.0 + 2.0 * 8.0 * features * 0.323_37 / 2.0 + 8.0 * features / 2.0;
        near("exchange", floor.exchange, values * 2048.0 / 50e9);
        near("hidden", floor.hidden, 8.0 * 0.75 * 4096.0 * 7.0 / 8.0 * 2048.0 / 50e9);
        near("total", floor.total(), floor.encode + floor.decode + floor.backward + floor.adam + floor.exchange);
        // Eight GPUs have the machine's link, nine the network.
        let sent = |feature: f64, link: f64| (2.0 + 8.0 / 4.0) * 8192.0 * (feature - 1.0) / feature * 2048.0 / link;
        near("eight GPUs", of(1, 8).exchange, sent(8.0, 450e9));
        near("nine GPUs", of(1, 9).exchange, sent(9.0, 50e9));
        // Touched rows alone: those of the whole batch, 1 − e^(−0.78125) = 0.5422 of them.
        let mut touched = recipe(1 << 20);
        touched.train.adam = Adam::Touched;
        let floor = Floor::of(&touched, Mesh { data: 2, feature: 8 }, &rows, mixed, &H200);
        near("adam of touched rows", floor.adam, 26.0 * 2.0 * 65_536.0 * 0.542_18 * 2048.0 / 4.8e12);
    }

    /// A GPU of 100 GB has 96 for a run.
    #[test]
    fn what_fits_is_what_the_gpu_has_less_a_part() {
        let gpu = Gpu { memory: 100e9, ..H200 };
        let of = |bytes: u64| RankMemory { weights: bytes - 30, moments: 20, step: 10 };
        assert_eq!(of(96_000_000_000).total(), 96_000_000_000);
        assert!(of(95_999_999_999).fits(&gpu) && !of(96_000_000_000).fits(&gpu));
    }

    #[test]
    fn x_hat_hides_behind_the_slices_that_follow() {
        // As one slice follows the other: the link begins with one when the GPU has made it and the one before is sent.
        let simulated = |link: f64, gpu: f64, slices: usize| {
            let (made, sent) = (gpu / slices as f64, link / slices as f64);
            let end = (1..=slices).fold(0.0_f64, |end, slice| end.max(slice as f64 * made) + sent);
            end - gpu
        };
        for (link, gpu, slices) in [(1.0, 8.0, 4), (8.0, 1.0, 4), (3.0, 3.0, 2), (5.0, 4.0, 3), (2.0, 7.0, 1)] {
            let waited = waited_for(link, gpu, slices as f64);
            assert!((waited - simulated(link, gpu, slices)).abs() < 1e-12, "{link} {gpu} {slices}: {waited}");
            assert!((link / slices as f64..=link).contains(&waited));
        }
    }

    #[test]
    fn memory_shrinks_with_the_mesh_and_the_mode() {
        let (mixed, least) = (Precision::Mixed(Moments::F32), Precision::Bf16Sr(Moments::Int8));
        let one = RankMemory::of(&recipe(1 << 20), Mesh::ONE, 4096, mixed);
        let parameters = 2.0 * 4096.0 * 1048576.0;
        assert!(
            (one.weights as f64 / parameters - 6.0).abs() < 0.01
                && (one.moments as f64 / parameters - 8.0).abs() < 0.01
        );
        let sharded = RankMemory::of(&recipe(1 << 20), Mesh { data: 1, feature: 4 }, 4096, mixed);
        assert!(sharded.weights < one.weights / 3);
        let replicas = RankMemory::of(&recipe(1 << 20), Mesh { data: 4, feature: 1 }, 4096, mixed);
        assert!(replicas.weights == one.weights && replicas.moments < one.moments / 3);
        let paper = recipe(34 << 20);
        let gpus = |precision| fewest(&paper, 4096, precision, &H200).expect("tiles enough");
        assert!(gpus(least) <= 16 && gpus(least) < gpus(mixed), "{} {}", gpus(least), gpus(mixed));
    }
}

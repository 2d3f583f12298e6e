//! Small data sets and the recipes that go with them.

use std::path::{Path, PathBuf};

use loader::{Dtype, ShardWriter, Store, WriteOptions, synth};
use tempfile::TempDir;
use trainer::recipe::{Every, Recipe};

/// A temporary folder for data, recipes and runs.
#[derive(Debug)]
pub struct Fixture {
    folder: TempDir,
}

impl Default for Fixture {
    fn default() -> Self {
        Fixture::new()
    }
}

impl Fixture {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no temporary folder.
    pub fn new() -> Self {
        Fixture { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// With 15,401 training rows in `train` and 1,024 held-out rows in `eval`: 61 steps of 256, the last one short.
    pub fn with_data() -> Self {
        let fixture = Fixture::new();
        let spec = synth::Spec { features: 128, width: 32, rows: 15_401, shards: 3, active: 4.0, ..Default::default() };
        fixture.synth("train", &spec);
        fixture.synth("eval", &synth::Spec { rows: 1024, shards: 1, set: 1, ..spec });
        fixture
    }

    /// A path below the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path below the folder, as an argument or in a recipe.
    pub fn text(&self, name: &str) -> String {
        text(&self.path(name))
    }

    /// Makes synthetic shards in a folder.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn synth(&self, name: &str, spec: &synth::Spec) {
        let store = Store::open(&self.text(name)).expect("a folder");
        synth::write(spec, &store, 2, &mut |_| ()).expect("shards are written");
    }

    /// A recipe for the data of [`Fixture::with_data`] that takes a second; its run is in the folder `run`.
    ///
    /// # Panics
    /// Never: it is a valid recipe.
    pub fn recipe(&self, run: &str) -> Recipe {
        let mut recipe: Recipe = toml::from_str(
            "[data]\ntrain = []\n[sae]\nfeatures = 256\n[train]\nbatch = 256\nlr = 1e-3\nl1 = 2\n[run]\ndir = ''\n",
        )
        .expect("a recipe");
        recipe.data.train = vec![self.text("train")];
        // Small enough that windows turn over several times.
        recipe.data.window_bytes = 1 << 18;
        recipe.checkpoint.every = Every::Steps(10);
        recipe.log.every = 10;
        recipe.run.dir = self.text(run);
        recipe
    }

    /// Writes a recipe to NAME.toml and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save(&self, name: &str, recipe: &Recipe) -> String {
        self.save_text(name, &recipe.to_toml())
    }

    /// Writes a recipe's text to NAME.toml and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save_text(&self, name: &str, recipe: &str) -> String {
        let path = self.path(format!("{name}.toml"));
        std::fs::write(&path, recipe).expect("a recipe is written");
        text(&path)
    }

    /// Reads a JSON file below the folder.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self, name: &str) -> serde_json::Value {
        json(&self.path(name))
    }
}

/// Reads a JSON file.
///
/// # Panics
/// When it is none.
#[track_caller]
pub fn json(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads a file with one JSON object a line.
///
/// # Panics
/// When a line is none.
#[track_caller]
pub fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// A path as an argument or in a recipe.
///
/// # Panics
/// When it is not UTF-8.
pub fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}

/// Writes rows of `width` values to shards of at most `shard_rows` rows.
///
/// # Panics
/// When they cannot be written.
pub fn write_shards(folder: &Path, width: usize, rows: &[f32], dtype: Dtype, shard_rows: u64) {
    let store = Store::open(&text(folder)).expect("a folder");
    let options = WriteOptions { shard_rows, ..WriteOptions::new(width, dtype) };
    let mut writer = ShardWriter::create(&store, options).expect("a writer");
    let mut stored = vec![0u8; rows.len() * dtype.size()];
    dtype.from_f32(rows, &mut stored);
    writer.write(&stored, &[]).expect("rows are written");
    writer.finish().expect("a manifest is written");
}

/// Numbers for tests: splitmix64, so that the same seed gives the same numbers on every machine for ever.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Numbers(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// A multiple of 2⁻²³ in [−1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// `n` rows that are sums of 4 out of 2·width directions, plus a little noise. No function whose last bit depends on the
/// machine is used.
pub fn plain_rows(n: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    let directions: Vec<f32> = (0..2 * width * width).map(|_| numbers.unit()).collect();
    let mut rows = Vec::with_capacity(n * width);
    for _ in 0..n {
        let mut row = vec![0.0f32; width];
        for _ in 0..4 {
            let direction = numbers.below(2 * width) * width;
            let strength = 1.5 + numbers.unit();
            row.iter_mut().zip(&directions[direction..]).for_each(|(x, d)| *x += strength * d);
        }
        row.iter_mut().for_each(|x| *x += 0.05 * numbers.unit());
        rows.extend_from_slice(&row);
    }
    rows
}

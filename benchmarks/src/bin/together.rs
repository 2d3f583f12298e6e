//! Eight configurations on one stream beside the same eight one after the other: time by the clock and of processors, bytes read, and the same
//! bits; and whether one GEMM for several encoders would be faster than one for each.
//!
//!     cargo run --release -p benchmarks --bin together [rows] [width] [threads]
//!
//! Rows are synthetic (f16, in zstd as they are recommended), and lie in the page cache after the first pass, which is not timed. Bytes are those that
//! the process asks the system for (`rchar` of /proc/self/io), which counts them whether they come from the cache or not.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use benchmarks::planted::{Planted, Run};
use kernels::cpu::Cpu;
use kernels::{AdamMode, Device};
use loader::{Store, synth};
use trainer::recipe::Recipe;
use trainer::train::{Event, Member, Start, train_together};

/// `F` of each configuration.
const FEATURES: [usize; 8] = [64, 128, 128, 256, 256, 512, 512, 1024];
/// Rows that are evaluated at the end of each.
const HELD_OUT: u64 = 4096;
const BATCH: usize = 1024;
const REPEATS: usize = 3;

type Done<T> = Result<T, Box<dyn Error>>;

/// What the process has taken of the machine so far.
struct Taken {
    at: Instant,
    /// Seconds of its processors.
    cpu_s: f64,
    read_bytes: u64,
}

impl Taken {
    fn now() -> Done<Taken> {
        // Behind the name in brackets; the kernel counts in hundredths on every architecture that matters here.
        let stat = fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
        let io = fs::read_to_string("/proc/self/io")?;
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).ok_or("no rchar in /proc/self/io")?;
        Ok(Taken { at: Instant::now(), cpu_s: (ticks(11) + ticks(12)) / 100.0, read_bytes: read.trim().parse()? })
    }
}

fn recipe(folder: &Path, rows: u64, run: &str, place: usize) -> Done<Recipe> {
    let (data, features) = (folder.display(), FEATURES[place]);
    // Each takes another share of the rows, so that they end one after the other.
    let tokens = (rows * (place as u64 + 1) / FEATURES.len() as u64 / BATCH as u64).max(1) * BATCH as u64;
    let recipe: Recipe = toml::from_str(&format!(
        "data = {{ train = '{data}/train', eval = '{data}/eval', order = 'direct', window_bytes = 16777216, order_rows = {rows} }}
         sae.features = {features}
         train = {{ tokens = {tokens}, batch = {BATCH}, lr = 1e-3, l1 = 2, seed = {place} }}
         run.dir = '{data}/{run}-{place}'"
    ))?;
    Ok(recipe)
}

/// Trains groups of configurations, one group after the other.
fn train(device: &Cpu, threads: usize, groups: &[Vec<Recipe>]) -> Done<()> {
    for group in groups {
        let mut group = group.clone();
        group.iter_mut().for_each(|recipe| recipe.train.threads = Some(threads));
        let stop = AtomicBool::new(false);
        let stores = group.iter().map(|recipe| Store::open(&recipe.run.dir)).collect::<Result<Vec<_>, _>>()?;
        let members = group.iter().zip(&stores).map(|(recipe, store)| {
            let (words, watch) = (ToString::to_string as fn(&trainer::Error) -> String, Box::new(|_: Event<'_>| ()));
            Member {
                recipe,
                start: Start { store, resume: false, commit: "", stop: &stop, host_ranks: 1, words, watch },
            }
        });
        train_together(device, members.collect()).into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    Ok(())
}

/// Bytes of all tensor files below a folder, by their names.
fn tensors(folder: &Path) -> Done<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                found.push((path.strip_prefix(folder)?.to_owned(), fs::read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn main() -> Done<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let mut number = |or: usize| numbers.next().unwrap_or(Ok(or));
    let (rows, width, threads) = (number(400_000)? as u64, number(384)?, number(2)?);
    let device = Cpu::new(Some(threads))?;
    println!("{}; {rows} rows of {width} f16, batches of {BATCH}, features {FEATURES:?}", device.describe());
    let folder = tempfile::tempdir()?;
    let spec = synth::Spec { features: 2 * width, width, rows, active: 8.0, ..synth::Spec::default() };
    synth::write(&spec, &Store::open(&format!("{}/train", folder.path().display()))?, threads, &mut |_| ())?;
    let held_out = synth::Spec { rows: HELD_OUT, set: 1, ..spec };
    synth::write(&held_out, &Store::open(&format!("{}/eval", folder.path().display()))?, threads, &mut |_| ())?;
    let recipes = |run: &str| -> Done<Vec<Recipe>> {
        (0..FEATURES.len()).map(|place| recipe(folder.path(), rows, run, place)).collect()
    };
    train(&device, threads, &[recipes("first")?])?;
    println!("{:<22} {:>9} {:>9} {:>9}", "", "wall s", "CPU s", "GB read");
    let mut ratios = Vec::new();
    for repeat in 0..REPEATS {
        let mut taken = Vec::new();
        for (name, together) in [("one after the other", false), ("together", true)] {
            let all = recipes(&format!("{together}-{repeat}"))?;
            let groups = if together { vec![all] } else { all.into_iter().map(|recipe| vec![recipe]).collect() };
            let before = Taken::now()?;
            train(&device, threads, &groups)?;
            let after = Taken::now()?;
            let wall_s = (after.at - before.at).as_secs_f64();
            let (cpu_s, read) = (after.cpu_s - before.cpu_s, (after.read_bytes - before.read_bytes) as f64 / 1e9);
            println!("{name:<22} {wall_s:>9.2} {cpu_s:>9.2} {read:>9.3}");
            taken.push([wall_s, cpu_s, read]);
        }
        for place in 0..FEATURES.len() {
            let run = |together: bool| tensors(&folder.path().join(format!("{together}-{repeat}-{place}")));
            assert!(run(false)? == run(true)?, "configuration {place} has other bits in company");
        }
        ratios.push([0, 1, 2].map(|of| taken[0][of] / taken[1][of]));
    }
    let median = |of: usize| {
        let mut values: Vec<f64> = ratios.iter().map(|ratio| ratio[of]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "together: {:.2} × faster, {:.2} × less CPU time, {:.2} × fewer bytes; all bits equal",
        median(0),
        median(1),
        median(2)
    );
    stacked(&device, width);
    Ok(())
}

/// Encoders stacked into one GEMM, beside one GEMM for each.
fn stacked(device: &Cpu, width: usize) {
    println!("{:<34} {:>9} {:>9} {:>9}", "eight encoders", "apart ms", "stacked", "ratio");
    for (features, l0) in [(64, 8), (128, 8), (256, 12), (512, 16), (1024, 24)] {
        let encode = |features: usize, l0: usize| {
            let planted = Planted::new(width, features, &[(BATCH, l0)]);
            let mut run = Run::new(device, &planted, AdamMode::Dense);
            run.load(&planted.batches[0], l0);
            run.time(kernels::Path::Sparse, 9)[0][1]
        };
        let (apart, stacked) = (8.0 * encode(features, l0), encode(8 * features, 8 * l0));
        let name = format!("{features} features each");
        println!("{name:<34} {apart:>9.3} {stacked:>9.3} {:>9.2}", apart / stacked);
    }
}

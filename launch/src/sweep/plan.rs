//! `sae sweep --dry-run`: what the configurations would take, one by one and together. Nothing is written.
//!
//! On this machine's processor steps of each size are made and timed, as `sae train --dry-run` does; with `--gpu` they are estimated from
//! data sheets, as `sae plan` does.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use indicatif::{HumanBytes, HumanCount};
use kernels::mesh::{Axes, Mesh, Place};
use kernels::{Device, Purpose};
use trainer::data::Data;
use trainer::forecast::{EXPECTED, Floor, Gpu, RankMemory, Workload};
use trainer::overhead::COPY;
use trainer::plan::{self, DataSize};
use trainer::recipe::{Recipe, Train};
use trainer::rehearsal::{Measured, rehearse};
use trainer::synthesis;
use trainer::train::share_a_stream;

use super::folder::with_one_order;
use crate::args::{L0, MTBF, STORAGE};
use crate::budget::{Budget, Terms, duration};
use crate::device::{self, DeviceChoice, Local, Opened, on_a_gpu};
use crate::failure::Failure;
use crate::{job, remedy, table};

/// On what a sweep would be trained.
#[derive(Clone, Copy, Debug)]
pub struct Where {
    /// The device of this machine.
    pub device: DeviceChoice,
    /// Such GPUs, instead of this machine.
    pub gpu: Option<Gpu>,
    /// How many train at the same time.
    pub slots: usize,
    /// From so many features on, all slots train a configuration together.
    pub mesh_from: Option<u64>,
    /// Price of a GPU, or of this machine, an hour.
    pub price: Option<f64>,
}

impl Where {
    /// The mesh that a configuration trains on.
    fn mesh(&self, recipe: &Recipe) -> Result<Mesh, Failure> {
        let is_large = self.mesh_from.is_some_and(|from| recipe.sae.features as u64 >= from);
        if is_large && self.slots > 1 { job::mesh_of(None, self.slots, recipe) } else { Ok(Mesh::ONE) }
    }
}

/// What a configuration would take.
struct Taken {
    mesh: Mesh,
    rows: u64,
    /// Of each GPU, or of this machine.
    memory_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    kept_bytes: u64,
    seconds: f64,
    /// Why it could not begin.
    problem: Option<String>,
}

/// Prints the plan of configurations, which have the same data or few.
///
/// # Errors
/// Those of opening the data and the device.
pub fn run(configurations: &[(String, Recipe)], at: Where) -> Result<(), Failure> {
    let mut sizes = Sizes::default();
    let mut taken = Vec::new();
    match at.gpu {
        Some(gpu) => {
            for (_, recipe) in configurations {
                taken.push(on_gpu(recipe, &sizes.of(recipe)?, &gpu, at.mesh(recipe)?));
            }
        }
        None => {
            let mut timed = BTreeMap::new();
            for (_, recipe) in configurations {
                let size = sizes.of(recipe)?;
                taken.push(match device::open(at.device, &recipe.train, Axes::alone(), Local::ALONE)? {
                    Opened::Cpu(device) => here(&device, recipe, &size, (at.slots, at.mesh(recipe)?), &mut timed)?,
                    Opened::Cuda(_) => {
                        return Err(Failure::arguments(
                            "a dry run times steps on the processor, and estimates GPUs: say which with --gpu, such as --gpu h200",
                        ));
                    }
                });
            }
        }
    }
    let streams = streams(configurations, &taken);
    show(configurations, &taken, &streams, at);
    Ok(())
}

/// The places of configurations that share a stream, in an order for the most rows, as the sweep will have one. One on a mesh has its own.
fn streams(configurations: &[(String, Recipe)], taken: &[Taken]) -> Vec<Vec<usize>> {
    let rows = taken.iter().map(|taken| taken.rows).max().unwrap_or(0);
    let is_on_mesh = |at: usize| taken[at].mesh != Mesh::ONE;
    let ordered: Vec<Recipe> = configurations.iter().map(|(_, recipe)| with_one_order(recipe, rows)).collect();
    let mut streams: Vec<Vec<usize>> = Vec::new();
    for at in 0..ordered.len() {
        let shares =
            |first: usize| !is_on_mesh(first) && !is_on_mesh(at) && share_a_stream(&ordered[first], &ordered[at]);
        match streams.iter_mut().find(|stream| shares(stream[0])) {
            Some(stream) => stream.push(at),
            None => streams.push(vec![at]),
        }
    }
    streams
}

/// Shards of configurations: for training, held out, and the column.
type Shards = (Vec<String>, Vec<String>, Option<String>);

/// How large the data of configurations are: each opened once.
#[derive(Default)]
struct Sizes {
    known: BTreeMap<Shards, Data>,
}

impl Sizes {
    fn of(&mut self, recipe: &Recipe) -> Result<DataSize, Failure> {
        if let (Some(spec), false) = (&recipe.data.synth, synthesis::to_make(recipe)?.is_empty()) {
            return Ok(DataSize::of_synthetic(recipe, spec)?);
        }
        let shards = (recipe.data.train.clone(), recipe.data.eval.clone(), recipe.data.column.clone());
        let data = match self.known.entry(shards) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Data::open(recipe, None)?),
        };
        Ok(DataSize::of(recipe, &data.of_another(recipe)?)?)
    }
}

/// On this machine's processor, with steps as they are `timed` here.
fn here<D: Device>(
    device: &D,
    recipe: &Recipe,
    size: &DataSize,
    (slots, mesh): (usize, Mesh),
    timed: &mut BTreeMap<String, Measured>,
) -> Result<Taken, Failure> {
    let of_rank = Place { mesh, rank: 0 };
    let problem = plan::check_fits(device, recipe, size, of_rank, slots).err().map(|error| remedy::words(&error));
    // Ranks here share the cores, so that together they take what one would.
    let shape = plan::shape(recipe, size.extent, Place { mesh: Mesh::ONE, rank: 0 });
    let Train { adam, threads, .. } = recipe.train;
    let kind = format!("{} {} {adam:?} {threads:?} {}", shape.features, shape.batch, recipe.sae.decoder_norm);
    let measured = match timed.get(&kind) {
        Some(known) => *known,
        None => {
            let measured = rehearse(device, recipe, shape, L0)?;
            timed.insert(kind, measured);
            measured
        }
    };
    let of_each = device.bytes(plan::shape(recipe, size.extent, of_rank), Purpose::Training).total();
    let memory_bytes = of_each * mesh.ranks() as u64 + size.stream_bytes;
    let pace = (measured.step_s, measured.forward_s, measured.copy);
    Ok(Taken { problem, ..taken(recipe, size, mesh, memory_bytes, pace) })
}

fn on_gpu(recipe: &Recipe, size: &DataSize, gpu: &Gpu, mesh: Mesh) -> Taken {
    let extent = size.extent;
    let rows = Workload { rows: extent.rows, width: extent.width, stored: extent.dtype.size(), l0: L0 };
    let precision = on_a_gpu(&recipe.train);
    let memory = RankMemory::of(recipe, mesh, rows.width, precision);
    let floor = Floor::of(recipe, mesh, &rows, precision, gpu);
    let problem = (!memory.fits(gpu)).then(|| {
        let (on, or) = match mesh.ranks() {
            1 => ("one".to_owned(), "take a mesh of several with --mesh-from and --slots, or "),
            ranks => (format!("each of {ranks}"), ""),
        };
        let memory = HumanBytes(memory.total());
        format!("{memory} of memory do not fit on {on} {}: {or}lower sae.features or train.batch", gpu.name)
    });
    let pace = (floor.total() / EXPECTED, (floor.encode + floor.decode + floor.exchange) / EXPECTED, COPY);
    Taken { problem, ..taken(recipe, size, mesh, memory.total(), pace) }
}

fn taken(
    recipe: &Recipe,
    size: &DataSize,
    mesh: Mesh,
    memory_bytes: u64,
    (step_s, forward_s, copy): (f64, f64, f64),
) -> Taken {
    let extent = size.extent;
    let budget = Budget::of(&Terms {
        recipe,
        mesh,
        width: extent.width,
        row_bytes: extent.row_bytes() as f64,
        steps_done: 0,
        rows: extent.rows,
        eval_rows: extent.eval_rows,
        step_s,
        forward_s,
        copy,
        storage: STORAGE * 1e9,
        buffer: 0,
        mtbf: MTBF,
        price: None,
    });
    Taken {
        mesh,
        rows: extent.rows,
        memory_bytes,
        read_bytes: extent.rows.saturating_mul(extent.row_bytes() as u64),
        written_bytes: budget.checkpoints.total_bytes,
        kept_bytes: budget
            .checkpoints
            .bytes
            .saturating_mul(recipe.checkpoint.keep as u64)
            .min(budget.checkpoints.total_bytes),
        seconds: budget.time.total_s,
        problem: None,
    }
}

fn show(configurations: &[(String, Recipe)], taken: &[Taken], streams: &[Vec<usize>], at: Where) {
    let rows: Vec<_> = configurations
        .iter()
        .zip(taken)
        .map(|((label, recipe), taken)| {
            [
                label.clone(),
                HumanCount(recipe.sae.features as u64).to_string(),
                HumanBytes(taken.memory_bytes).to_string(),
                HumanBytes(taken.read_bytes).to_string(),
                HumanBytes(taken.written_bytes).to_string(),
                duration(taken.seconds),
            ]
        })
        .collect();
    table::columns(&["configuration", "features", "memory, at most", "read", "written, at most", "time"], &rows);
    for ((label, _), problem) in
        configurations.iter().zip(taken).filter_map(|(one, t)| Some((one, t.problem.as_ref()?)))
    {
        tracing::warn!("{label}: {problem}");
    }
    let sum = |of: fn(&Taken) -> u64| HumanBytes(taken.iter().map(of).sum()).to_string();
    let all_s: f64 = taken.iter().map(|taken| taken.seconds).sum();
    let (on_mesh, alone): (Vec<&Taken>, Vec<&Taken>) = taken.iter().partition(|taken| taken.mesh != Mesh::ONE);
    let mesh_s: f64 = on_mesh.iter().map(|taken| taken.seconds).sum();
    let longest = alone.iter().map(|taken| taken.seconds).fold(0.0, f64::max);
    // A mesh takes all slots. Steps are timed with all cores, which slots of the processor share.
    let wall_s = if at.gpu.is_some() { mesh_s + longest.max((all_s - mesh_s) / at.slots as f64) } else { all_s };
    let of_stream =
        |of: fn(&Taken) -> u64| move |stream: &Vec<usize>| stream.iter().map(|&at| of(&taken[at])).collect::<Vec<_>>();
    let memory = streams.iter().map(of_stream(|taken| taken.memory_bytes));
    // Each stream is read as far as the longest of its runs goes.
    let read: u64 =
        streams.iter().map(of_stream(|taken| taken.read_bytes)).map(|all| all.into_iter().max().unwrap_or(0)).sum();
    let mut lines = vec![
        ("configurations", configurations.len().to_string()),
        ("slots", at.slots.to_string()),
        ("configurations on a mesh of all slots", on_mesh.len().to_string()),
        ("streams of rows, each read once", streams.len().to_string()),
        ("time, one after the other", duration(all_s)),
        ("time by the clock", duration(wall_s)),
        (
            "memory of all on a stream (as many as fit train at once)",
            HumanBytes(memory.map(|all| all.iter().sum()).max().unwrap_or(0)).to_string(),
        ),
        ("read", HumanBytes(read).to_string()),
        ("read, were each to read for itself", sum(|taken| taken.read_bytes)),
        ("written, at most", sum(|taken| taken.written_bytes)),
        ("kept in the sweep's folder", sum(|taken| taken.kept_bytes)),
    ];
    if let Some(price) = at.price {
        let gpu_s: f64 = taken.iter().map(|taken| taken.seconds * taken.mesh.ranks() as f64).sum();
        let hours = if at.gpu.is_some() { gpu_s } else { wall_s } / 3600.0;
        lines.push(("cost", format!("{:.2}", price * hours)));
    }
    table::print("the sweep", &lines);
    table::say(match at.gpu {
        Some(gpu) => format!(
            "Estimated for {}, one for each slot, from data sheets and counts of bytes; memory is that of each.",
            gpu.name
        ),
        None => format!("With steps as measured here once {L0} features fire on a row; before that they take longer."),
    });
    table::say("next: the same command without --dry-run");
}

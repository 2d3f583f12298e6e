//! `sae plan`.

mod report;

use kernels::mesh::{Axes, Mesh};
use kernels::{Device, Purpose, Shape};
use loader::{Dataset, Dtype, OpenOptions, memory};
use trainer::communication::Traffic;
use trainer::forecast::{EXPECTED, Floor, IN_A_MACHINE, RankMemory, Workload, fewest};
use trainer::overhead::COPY;
use trainer::recipe::Recipe;
use trainer::rehearsal::rehearse;
use trainer::room::{Room, Smaller};
use trainer::{checkpoint, synthesis};

use self::report::{Assumed, Parts, Report};
use crate::args::{LEAST_SAVE_S, PlanArgs};
use crate::budget::{Budget, Terms};
use crate::device::{self, DeviceChoice, Local, Opened, on_a_gpu};
use crate::failure::Failure;
use crate::gpus::{HOST_BYTES_A_GPU, fewest_by_mode};
use crate::{job, recipes, remedy, table};

/// Bytes that rows are read ahead besides the order's window, as the loader has it.
const AHEAD_BYTES: u64 = 256 << 20;

/// What is known of the data.
struct Known {
    rows: Workload,
    eval_rows: Option<u64>,
}

/// Estimates or measures, and prints.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let recipe = recipes::read(&args.recipe, &args.set)?;
    let known = known(args, &recipe)?;
    let (report, room, next) = match args.cpu {
        true => on_the_processor(args, &recipe, &known)?,
        false => on_gpus(args, &recipe, &known)?,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        table::say(json.map_err(|error| trainer::Error::Internal(error.into()))?);
        return Ok(());
    }
    report.print(&room);
    table::say(match args.cpu {
        true => "Measured here, on a few steps with rows made for it, and the rest estimated from counts of bytes.",
        false => "Estimated from data sheets and counts of bytes; no kernel has been timed for it.",
    });
    table::say(next);
    Ok(())
}

/// What is printed: the report, what is said of the device's memory, and the next command.
type Told = (Report, String, String);

fn on_gpus(args: &PlanArgs, recipe: &Recipe, Known { rows, eval_rows }: &Known) -> Result<Told, Failure> {
    let mesh = job::mesh_of(args.mesh, args.gpus as usize, recipe)?;
    let precision = on_a_gpu(&recipe.train);
    let memory = RankMemory::of(recipe, mesh, rows.width, precision);
    let fits = memory.fits(&args.gpu);
    let enough = fewest(recipe, rows.width, precision, &args.gpu);
    let room = match (fits, enough) {
        (true, _) => "fits".to_owned(),
        (false, Some(gpus)) => format!("does not fit: {gpus} would do"),
        (false, None) => "does not fit on any number".to_owned(),
    };
    let floor = Floor::of(recipe, mesh, rows, precision, &args.gpu);
    let (batch, row_bytes) = (recipe.train.batch as f64, (rows.width * rows.stored) as f64);
    let host_ranks = mesh.ranks().min(IN_A_MACHINE);
    let host_memory = args.host_memory.unwrap_or(HOST_BYTES_A_GPU * host_ranks as u64);
    let host = Host { memory_bytes: Some(host_memory), ranks: host_ranks };
    let terms = Terms {
        recipe,
        mesh,
        width: rows.width,
        row_bytes,
        steps_done: 0,
        rows: rows.rows,
        eval_rows: *eval_rows,
        step_s: floor.total() / EXPECTED,
        forward_s: (floor.encode + floor.decode + floor.exchange) / EXPECTED,
        copy: COPY,
        storage: args.storage * 1e9,
        buffer: buffer(recipe, host, 2.0 * batch * row_bytes),
        mtbf: args.mtbf,
        price: args.price,
    };
    let budget = Budget::of(&terms);
    let sent = Traffic::between_gpus(recipe, mesh, rows.stored as f64, rows.width).total() * rows.width as f64;
    let alone = Floor::of(recipe, Mesh::ONE, rows, precision, &args.gpu).total();
    let next = match (fits, enough) {
        (true, _) => next_on_gpus(args, recipe, &budget),
        (false, Some(gpus)) => {
            format!("next: the same with --gpus {gpus} and without --mesh, or a lighter memory mode")
        }
        (false, None) => "next: the same with fewer sae.features or a smaller train.batch".to_owned(),
    };
    let largest = floor.parts().into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name);
    let report = Report {
        device: args.gpu.name.to_owned(),
        measured: false,
        gpus: mesh.ranks(),
        memory: report::MemoryReport {
            weights_bytes: memory.weights,
            moments_bytes: memory.moments,
            step_bytes: memory.step,
            total_bytes: memory.total(),
            device_bytes: Some(args.gpu.memory as u64),
            fits,
        },
        floor: Some(parts(&floor)),
        bound_by: bound_by(&terms, largest),
        sent_bytes: sent as u64,
        efficiency: Some(alone / (mesh.ranks() as f64 * floor.total())),
        fewest_gpus: fewest_by_mode(recipe, rows.width, &args.gpu),
        assumed: assumed(args, &terms, host),
        ..of_all(&terms, budget)
    };
    Ok((report, room, next))
}

fn on_the_processor(args: &PlanArgs, recipe: &Recipe, Known { rows, eval_rows }: &Known) -> Result<Told, Failure> {
    let Opened::Cpu(device) = device::open(DeviceChoice::Cpu, &recipe.train, Axes::alone(), Local::ALONE)? else {
        return Err(Failure::hardware("the processor was asked for, and something else was opened"));
    };
    let batch = recipe.train.batch.min(usize::try_from(rows.rows).unwrap_or(usize::MAX));
    let (width, features, dense_bytes) = (rows.width, recipe.sae.features, recipe.train.dense_bytes as usize);
    let shape = Shape { width, features, batch, dense_bytes };
    let [training, looking] = [Purpose::Training, Purpose::Evaluation].map(|purpose| device.bytes(shape, purpose));
    let available = args.host_memory.or_else(memory::available);
    let host = Host { memory_bytes: available, ranks: 1 };
    let there = available.map(Room::given);
    let fits = there.as_ref().is_none_or(|there| there.fits(&device, shape, false));
    let measured = rehearse(&device, recipe, shape, args.l0)?;
    let row_bytes = (width * rows.stored) as f64;
    let of_recipe = recipe.train.batch as f64 / batch as f64;
    let terms = Terms {
        recipe,
        mesh: Mesh::ONE,
        width,
        row_bytes,
        steps_done: 0,
        rows: rows.rows,
        eval_rows: *eval_rows,
        step_s: of_recipe * measured.step_s,
        forward_s: of_recipe * measured.forward_s,
        copy: measured.copy,
        storage: args.storage * 1e9,
        buffer: buffer(recipe, host, training.total() as f64 + batch as f64 * row_bytes),
        mtbf: args.mtbf,
        price: args.price,
    };
    let budget = Budget::of(&terms);
    let how = match measured.features {
        all if all == features => "steps of the processor".to_owned(),
        fewer => format!("steps of the processor, with {fewer} features and their time scaled up"),
    };
    let report = Report {
        device: device.describe(),
        measured: true,
        memory: report::MemoryReport {
            weights_bytes: looking.weights,
            moments_bytes: training.weights.saturating_sub(looking.weights),
            step_bytes: training.step + training.lists,
            total_bytes: training.total(),
            device_bytes: available,
            fits,
        },
        bound_by: bound_by(&terms, &how),
        assumed: assumed(args, &terms, host),
        ..of_all(&terms, budget)
    };
    let path = table::quoted(&args.recipe);
    let (room, next) = match there.filter(|_| !fits).map(|there| there.smaller(&device, shape, false)) {
        None => {
            ("fits".to_owned(), format!("next: sae train {path}{} --device cpu", set_with_rows(args, recipe, None)))
        }
        Some(smaller) => match would_fit(smaller) {
            Some(fitting) => (
                format!("does not fit: {fitting} would"),
                format!("next: sae plan {path} --cpu{}", set_with_rows(args, recipe, Some(fitting))),
            ),
            None => (
                "does not fit".to_owned(),
                "next: the same with fewer sae.features and a smaller train.batch".to_owned(),
            ),
        },
    };
    Ok((report, room, next))
}

/// The key and value with which it would fit: a smaller batch is the lesser change.
fn would_fit(Smaller { features, batch }: Smaller) -> Option<String> {
    let batch = batch.map(|batch| format!("train.batch={batch}"));
    batch.or_else(|| features.map(|features| format!("sae.features={features}")))
}

/// What is said of every run; of one on a GPU more.
fn of_all(terms: &Terms<'_>, budget: Budget) -> Report {
    let recipe = terms.recipe;
    Report {
        device: String::new(),
        measured: false,
        gpus: 0,
        mesh: terms.mesh.to_string(),
        rows: terms.rows,
        width: terms.width,
        features: recipe.sae.features,
        batch: recipe.train.batch,
        memory: report::MemoryReport::default(),
        floor: None,
        step_s: recipe.train.batch as f64 / budget.tokens_per_s,
        bound_by: String::new(),
        read_bytes: (terms.rows as f64 * terms.row_bytes) as u64,
        sent_bytes: 0,
        efficiency: None,
        budget,
        fewest_gpus: Vec::new(),
        assumed: Assumed::default(),
    }
}

/// A machine, as far as checkpoints need it.
#[derive(Clone, Copy)]
struct Host {
    /// What is there for its ranks, where that is known.
    memory_bytes: Option<u64>,
    /// How many of them share it.
    ranks: usize,
}

fn assumed(args: &PlanArgs, terms: &Terms<'_>, host: Host) -> Assumed {
    Assumed {
        l0: args.l0,
        storage_bytes_per_s: terms.storage,
        host_memory_bytes: host.memory_bytes,
        host_ranks: host.ranks,
        copy_bytes_per_s: terms.copy,
        mtbf_hours: args.mtbf,
    }
}

fn bound_by(terms: &Terms<'_>, computing: &str) -> String {
    let read_s = terms.recipe.train.batch as f64 * terms.row_bytes / terms.storage;
    if read_s > terms.step_s { "storage".to_owned() } else { computing.to_owned() }
}

fn parts(floor: &Floor) -> Parts {
    Parts {
        encode_s: floor.encode,
        decode_s: floor.decode,
        backward_s: floor.backward,
        adam_s: floor.adam,
        exchange_s: floor.exchange,
        hidden_s: floor.hidden,
        total_s: floor.total(),
    }
}

/// What a rank may keep of a checkpoint: as the recipe says, or what is left of its host's memory when all ranks there have read ahead
/// and taken `own` bytes besides.
fn buffer(recipe: &Recipe, host: Host, own: f64) -> u64 {
    let ahead = recipe.data.prefetch_bytes.unwrap_or(recipe.data.window_bytes + AHEAD_BYTES);
    let taken = (ahead + own as u64).saturating_mul(host.ranks as u64);
    let left = host.memory_bytes.map(|bytes| bytes.saturating_sub(taken));
    recipe.checkpoint.buffer_bytes.unwrap_or_else(|| checkpoint::spare_bytes(left, host.ranks))
}

/// The command for a run that fits.
fn next_on_gpus(args: &PlanArgs, recipe: &Recipe, budget: &Budget) -> String {
    let how = match args.gpus as usize {
        gpus if gpus <= IN_A_MACHINE => format!("local --ranks {gpus}"),
        gpus => format!(
            "slurm --nodes {} --gpus-per-node {IN_A_MACHINE}{}",
            gpus.div_ceil(IN_A_MACHINE),
            match budget.checkpoints.save_s {
                LEAST_SAVE_S => String::new(),
                longer => format!(" --save-s {longer}"),
            }
        ),
    };
    let mesh = args.mesh.map_or(String::new(), |mesh| format!(" --mesh {mesh}"));
    format!("next: sae launch {how} {}{mesh}{}", table::quoted(&args.recipe), set_with_rows(args, recipe, None))
}

/// `--set` for a run as it was planned: of the rows that were planned with, where training makes them, since it knows no --width and --rows; and with
/// one change more. Each key once.
fn set_with_rows(args: &PlanArgs, recipe: &Recipe, change: Option<String>) -> String {
    let mut own = match (&recipe.data.synth, args.width, args.rows) {
        (Some(_), Some(width), Some(rows)) => {
            vec![format!("data.synth.width={width}"), format!("data.synth.rows={rows}")]
        }
        _ => Vec::new(),
    };
    own.extend(change);
    let is_kept = |set: &&String| own.iter().all(|own| remedy::set_key(own) != remedy::set_key(set));
    let kept = args.set.iter().filter(is_kept).map(|set| table::quoted(set));
    kept.collect::<Vec<_>>().iter().chain(&own).map(|set| format!(" --set {set}")).collect()
}

fn known(args: &PlanArgs, recipe: &Recipe) -> Result<Known, Failure> {
    if let (Some(width), Some(rows)) = (args.width, args.rows) {
        return Ok(Known { rows: Workload { rows, width, stored: 2, l0: args.l0 }, eval_rows: None });
    }
    let of = |rows: u64, width, dtype: Dtype| Workload {
        rows: recipe.train.tokens.unwrap_or(rows).min(rows),
        width,
        stored: dtype.size(),
        l0: args.l0,
    };
    if let (Some(spec), false) = (&recipe.data.synth, synthesis::to_make(recipe)?.is_empty()) {
        let made = recipes::synthetic(spec);
        let told = format!("data.train is not there yet: estimated with {made}, which training makes first");
        // Standard output is the object's alone.
        if args.json {
            tracing::info!("{told}")
        } else {
            table::say(told)
        }
        let rows = of(spec.rows, spec.width, spec.dtype);
        return Ok(Known { rows, eval_rows: Some(recipe.data.synth_eval_rows) });
    }
    let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
    let train = Dataset::open(&recipe.data.train, &options).map_err(|error| {
        Failure::arguments(format!(
            "{}; where there are no rows yet, say what they would be with --width and --rows",
            remedy::words(&error.into())
        ))
    })?;
    let eval_rows = match recipe.data.eval.is_empty() {
        true => None,
        false => Some(Dataset::open(&recipe.data.eval, &options)?.rows()),
    };
    Ok(Known { rows: of(train.rows(), train.width(), train.dtype()), eval_rows })
}

//! `sae plan`.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use kernels::cuda::{Moments, Precision};
use kernels::mesh::{Mesh, Place};
use loader::{Dataset, Dtype, OpenOptions};
use trainer::communication::Traffic;
use trainer::forecast::{EXPECTED, Floor, IN_A_MACHINE, Memory, Rows, fewest};
use trainer::recipe::Recipe;
use trainer::{checkpoint, data};

use crate::args::{LEAST_SAVE_S, Plan};
use crate::device::on_a_card;
use crate::failure::Failure;
use crate::{job, recipes, table};

/// The ways to keep weights and moments, as a recipe says them, from the most memory to the least.
const MODES: [(&str, Precision); 4] = [
    ("mixed, moments f32", Precision::Mixed(Moments::F32)),
    ("bf16-sr, moments f32", Precision::Bf16Sr(Moments::F32)),
    ("bf16-sr, moments bf16", Precision::Bf16Sr(Moments::Bf16)),
    ("bf16-sr, moments int8", Precision::Bf16Sr(Moments::Int8)),
];

/// Reckons and prints.
pub fn run(args: &Plan) -> Result<(), Failure> {
    let recipe = recipes::read(&args.recipe, &args.set)?;
    let rows = rows(args, &recipe)?;
    let mesh = job::mesh_of(args.mesh, args.gpus as usize, &recipe)?;
    let precision = on_a_card(&recipe.train);
    memory(args, &recipe, mesh, &rows, precision);
    time(args, &recipe, mesh, &rows, precision);
    checkpoints(args, &recipe, mesh, &rows);
    modes(args, &recipe, &rows);
    table::say("Reckoned from data sheets and counts of bytes; no kernel has been timed for it.");
    table::say(next(args, &recipe, mesh, &rows, precision));
    Ok(())
}

/// The command for the run that was planned, or for a plan that fits.
fn next(args: &Plan, recipe: &Recipe, mesh: Mesh, rows: &Rows, precision: Precision) -> String {
    let set: String = args.set.iter().map(|set| format!(" --set {}", table::quoted(set))).collect();
    let recipe_path = table::quoted(&args.recipe);
    if !Memory::of(recipe, mesh, rows.width, precision).fits(&args.gpu) {
        return match fewest(recipe, rows.width, precision, &args.gpu) {
            Some(gpus) => format!("next: the same with --gpus {gpus} and without --mesh, or a lighter memory mode"),
            None => "next: the same with fewer sae.features or a smaller train.batch".to_owned(),
        };
    }
    let how = match args.gpus as usize {
        gpus if gpus <= IN_A_MACHINE => format!("local --ranks {gpus}"),
        gpus => format!(
            "slurm --nodes {} --gpus-per-node {IN_A_MACHINE}{}",
            gpus.div_ceil(IN_A_MACHINE),
            match save_s(args, recipe, rows) {
                LEAST_SAVE_S => String::new(),
                longer => format!(" --save-s {longer}"),
            }
        ),
    };
    let mesh = args.mesh.map_or(String::new(), |mesh| format!(" --mesh {mesh}"));
    format!("next: sae launch {how} {recipe_path}{mesh}{set}")
}

fn rows(args: &Plan, recipe: &Recipe) -> Result<Rows, Failure> {
    if let (Some(width), Some(rows)) = (args.width, args.rows) {
        return Ok(Rows { rows, width, stored: 2, l0: args.l0 });
    }
    let of = |rows: u64, width, dtype: Dtype| Rows {
        rows: recipe.train.tokens.unwrap_or(rows).min(rows),
        width,
        stored: dtype.size(),
        l0: args.l0,
    };
    if let Some(spec) = data::to_synthesize(recipe)? {
        let made = recipes::synthetic(spec);
        table::say(format!("data.train is not there yet: reckoned with {made}, which training makes first"));
        return Ok(of(spec.rows, spec.width, spec.dtype));
    }
    let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
    match Dataset::open(&recipe.data.train, &options) {
        Ok(data) => Ok(of(data.rows(), data.width(), data.dtype())),
        Err(error) => Err(Failure::arguments(format!(
            "{error}; where there are no rows yet, say what they would be with --width and --rows"
        ))),
    }
}

fn memory(args: &Plan, recipe: &Recipe, mesh: Mesh, rows: &Rows, precision: Precision) {
    let memory = Memory::of(recipe, mesh, rows.width, precision);
    let room = match memory.fits(&args.gpu) {
        true => "fits".to_owned(),
        false => match fewest(recipe, rows.width, precision, &args.gpu) {
            Some(gpus) => format!("does not fit: {gpus} would do"),
            None => "does not fit on any number".to_owned(),
        },
    };
    table::print(
        &format!("each of {} {} as a mesh of {mesh}", args.gpus, args.gpu.name),
        &[
            ("weights of its shard", HumanBytes(memory.weights).to_string()),
            ("moments of what it owns", HumanBytes(memory.moments).to_string()),
            ("rows, lists, scratch of a step", HumanBytes(memory.step).to_string()),
            ("altogether", HumanBytes(memory.total()).to_string()),
            ("of", format!("{}: {room}", HumanBytes(args.gpu.memory as u64))),
        ],
    );
}

fn time(args: &Plan, recipe: &Recipe, mesh: Mesh, rows: &Rows, precision: Precision) {
    let floor = Floor::of(recipe, mesh, rows, precision, &args.gpu);
    let hidden = ("exchange meanwhile", floor.hidden);
    let parts = floor.parts().into_iter().chain((floor.hidden > 0.0).then_some(hidden));
    let parts: Vec<_> = parts.map(|(name, seconds)| (name, format!("{:.2} ms", 1e3 * seconds))).collect();
    table::print("a step, at the least", &parts);

    let batch = recipe.train.batch as f64;
    let of_cards = batch * EXPECTED / floor.total();
    let row_bytes = (rows.width * rows.stored) as f64;
    let of_storage = args.storage * 1e9 / row_bytes;
    let rate = of_cards.min(of_storage);
    let largest = floor.parts().into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name);
    let bound = if of_storage < of_cards { "storage" } else { largest };
    let sent = Traffic::between_cards(recipe, mesh, rows.stored as f64, rows.width).total() * rows.width as f64;
    let seconds = rows.rows as f64 / rate;
    let alone = Floor::of(recipe, Mesh::ONE, rows, precision, &args.gpu).total();
    let efficiency = alone / (mesh.ranks() as f64 * floor.total());
    table::print(
        "the run",
        &[
            ("rows × width", format!("{} × {}", HumanCount(rows.rows), rows.width)),
            ("read from storage", HumanBytes((rows.rows as f64 * row_bytes) as u64).to_string()),
            ("sent by a rank in a step", HumanBytes(sent as u64).to_string()),
            ("efficiency of the cards", format!("{:.0} %", 100.0 * efficiency)),
            ("tokens/s at the floor", HumanCount((batch / floor.total()) as u64).to_string()),
            ("tokens/s expected", HumanCount(rate as u64).to_string()),
            ("which reads", format!("{:.2} GB/s", rate * row_bytes / 1e9)),
            ("time expected", HumanDuration(Duration::from_secs_f64(seconds)).to_string()),
            ("bound by", bound.to_owned()),
        ],
    );
}

/// Seconds that storing a checkpoint of all ranks takes.
fn stored_s(args: &Plan, recipe: &Recipe, rows: &Rows) -> f64 {
    checkpoint::bytes(rows.width, recipe.sae.features) as f64 / (args.storage * 1e9)
}

/// What `--save-s` should be: as its help says.
fn save_s(args: &Plan, recipe: &Recipe, rows: &Rows) -> u32 {
    job::save_s(stored_s(args, recipe, rows))
}

/// What a checkpoint takes, and whether training goes on while it is stored.
fn checkpoints(args: &Plan, recipe: &Recipe, mesh: Mesh, rows: &Rows) {
    // The last rank owns as much as any, but for a part of a tile.
    let owned = Place { mesh, rank: mesh.ranks() - 1 }.owned(recipe.sae.features).len();
    let (all, part) = (checkpoint::bytes(rows.width, recipe.sae.features), checkpoint::bytes(rows.width, owned));
    let buffer = recipe.checkpoint.buffer_bytes.unwrap_or_else(|| checkpoint::spare_bytes(None, 1));
    let waits = match part.checked_sub(buffer).filter(|&rest| rest > 0) {
        Some(rest) => format!("until about {} of a rank's part are stored", HumanBytes(rest)),
        None => "until they are copied to the host".to_owned(),
    };
    table::print(
        "checkpoints",
        &[
            ("of all ranks", HumanBytes(all).to_string()),
            ("a rank's part", HumanBytes(part).to_string()),
            ("host memory for it", HumanBytes(checkpoint::staging_bytes(rows.width, owned, buffer)).to_string()),
            ("stored in", HumanDuration(Duration::from_secs_f64(stored_s(args, recipe, rows))).to_string()),
            ("--save-s of a job", save_s(args, recipe, rows).to_string()),
            ("training waits", waits),
        ],
    );
}

/// The fewest cards for each way to keep weights and moments.
fn modes(args: &Plan, recipe: &Recipe, rows: &Rows) {
    let cards = MODES.map(|(name, precision)| {
        let fewest = fewest(recipe, rows.width, precision, &args.gpu);
        (name, fewest.map_or("none".to_owned(), |cards| cards.to_string()))
    });
    table::print(&format!("fewest {} for each memory mode", args.gpu.name), &cards);
}

//! `sae train --dry-run`: what a run would read, hold and write, and whether it could begin. Whatever would end a run at its start ends
//! this with the same exit code; nothing is left anywhere.
//!
//! **A dry run is a start that stops.** It calls what a start calls before anything is taken or written, so it fails with the same words
//! and exit code, and adds what a start would notice by doing it: that `run.dir` can be written to, and rows can be read.

use indicatif::{HumanBytes, HumanCount};
use kernels::Device;
use loader::{Store, memory};
use trainer::checkpoint::Found;
use trainer::data::Data;
use trainer::plan::{self, DataSize, Plan};
use trainer::recipe::Recipe;
use trainer::rehearsal::{Measured, rehearse};
use trainer::synthesis::{self, Making};
use trainer::train::{self, Beginning};
use trainer::{run_dir, survey::Survey};

use crate::args::{L0, MTBF, STORAGE};
use crate::budget::{self, Budget, Terms};
use crate::failure::Failure;
use crate::{contents, disk, recipes, shards, table};

/// Looks at everything and prints.
pub fn run(
    (recipe, store): (&Recipe, &Store),
    resume: bool,
    device: &impl Device,
    host_ranks: usize,
) -> Result<(), Failure> {
    run_dir::check(store, recipe, resume)?;
    run_dir::check_writable(store)?;
    let making = synthesis::to_make(recipe)?;
    let (found, beginning) = match &recipe.data.synth {
        Some(spec) if !making.is_empty() => {
            shards::check((recipe, store), resume, device, host_ranks, &making)?;
            for shards in &making {
                run_dir::check_writable(&Store::open(shards.url)?)?;
            }
            let rows = DataSize::of_synthetic(recipe, spec)?;
            train::warn_of_few_steps(recipe, rows.extent);
            table::say(recipe.to_toml());
            say_what_is_made(&making);
            (rows, None)
        }
        _ => {
            let data = Data::open(recipe, resume.then_some(store))?;
            let rows = DataSize::of(recipe, &data)?;
            // Before much is read.
            Plan::of(device, recipe, &rows, host_ranks)?;
            let beginning = train::check(device, recipe, &data, resume.then_some(store))?;
            table::say(recipe.to_toml());
            contents::print("data.train", &data.train.contents());
            if let Some(eval) = &data.eval {
                contents::print("data.eval", &eval.contents());
            }
            if let Beginning::New(survey) = &beginning {
                survey.tell(&data);
            }
            (rows, Some(beginning))
        }
    };
    let plan = Plan::of(device, recipe, &found, host_ranks)?;
    let (survey, from) = match &beginning {
        Some(Beginning::New(survey)) => (Some(survey), None),
        Some(Beginning::Behind(found)) => (None, Some(found.as_ref())),
        None => (None, None),
    };
    let left = Left::of(recipe, &plan, from);
    show(recipe, (&plan, survey), (device, host_ranks), &left);
    if left.steps == 0 {
        table::say("next: nothing is left to train: --resume would measure the run again and rewrite its summary");
        return Ok(());
    }
    let measured = measure(device, recipe, &found)?;
    let budget = measured.map(|measured| budget(recipe, (&plan, &found), &left, &measured));
    match &budget {
        Some(budget) => show_budget(budget),
        None => table::say("what it takes of time and storage on several ranks or GPUs: sae plan"),
    }
    warn_of_little_memory(device, &plan, host_ranks);
    warn_of_little_room(store, recipe, &plan, budget.as_ref());
    table::say("next: the same command without --dry-run");
    Ok(())
}

fn say_what_is_made(making: &[Making<'_>]) {
    for shards in making {
        let (made, bytes) = (recipes::synthetic(&shards.spec), HumanBytes(shards.bytes()));
        table::say(format!("# {} is not there yet: training makes {made} first, {bytes}", shards.key));
    }
}

/// What of a run is yet to be made.
struct Left {
    /// The checkpoint behind which it goes on, and its step.
    from: Option<(String, u64)>,
    steps: u64,
    rows: u64,
}

impl Left {
    fn of(recipe: &Recipe, plan: &Plan, from: Option<&Found>) -> Left {
        let done = from.map_or(0, |found| found.manifest.step);
        Left {
            from: from.map(|found| (found.folder.clone(), done)),
            steps: plan.steps.saturating_sub(done),
            rows: plan.rows.saturating_sub(done.saturating_mul(recipe.train.batch as u64)),
        }
    }
}

fn show<D: Device>(
    recipe: &Recipe,
    (plan, survey): (&Plan, Option<&Survey>),
    (device, host_ranks): (&D, usize),
    left: &Left,
) {
    let mut rows = vec![("device", device.describe())];
    let (ranks, mesh) = (device.axes().all.size(), device.axes().place.mesh);
    if ranks > 1 {
        rows.push(("ranks", format!("{ranks}, {host_ranks} of them on this machine")));
        rows.push((
            "mesh",
            format!("{mesh}: {} slices of the batch, {} shards of the features", mesh.data, mesh.feature),
        ));
    }
    rows.extend([
        ("rows × width", format!("{} × {} {}", HumanCount(plan.rows), plan.width, plan.dtype)),
        ("order", plan.order.clone()),
        ("steps", HumanCount(plan.steps).to_string()),
    ]);
    if let Some((folder, step)) = &left.from {
        rows.push(("goes on behind", format!("step {}, from {folder}", HumanCount(*step))));
        let (steps, of_rows) = (HumanCount(left.steps), HumanCount(left.rows));
        rows.push(("left", if left.steps == 0 { "nothing".into() } else { format!("{steps} steps, {of_rows} rows") }));
    }
    let read = plan.bytes_read / plan.rows.max(1) * left.rows;
    rows.extend([
        ("parameters", HumanCount(plan.parameters).to_string()),
        ("read", HumanBytes(read).to_string()),
        ("memory: weights and moments", HumanBytes(plan.weight_bytes).to_string()),
        ("memory: step, at most", HumanBytes(plan.step_bytes).to_string()),
        ("memory: rows read ahead, at most", HumanBytes(plan.stream_bytes).to_string()),
        ("memory: sample, first weights, evaluation or saving, at most", HumanBytes(plan.passing_bytes).to_string()),
    ]);
    let memory = HumanBytes(plan.memory_bytes());
    if ranks > 1 {
        rows.push(("memory: altogether, of each rank, at most", memory.to_string()));
        let here = HumanBytes(plan.memory_bytes().saturating_mul(host_ranks as u64));
        rows.push(("memory: of all ranks on this machine, at most", here.to_string()));
    } else {
        rows.push(("memory: altogether, at most", memory.to_string()));
    }
    rows.extend([
        ("of a checkpoint kept in memory, at most", HumanBytes(plan.buffer_bytes).to_string()),
        ("written at each checkpoint", HumanBytes(plan.checkpoint_bytes).to_string()),
        ("checkpoints kept", kept(recipe)),
    ]);
    if let Some(survey) = survey {
        rows.push(("E‖x‖² in the largest 1 % of the rows", table::percent(survey.top1_share())));
    }
    table::print(&format!("plan for {}", recipe.run.dir), &rows);
}

fn kept(recipe: &Recipe) -> String {
    let besides = if recipe.checkpoint.best { " and the best" } else { "" };
    format!("{}{besides}", recipe.checkpoint.keep)
}

/// A few steps, where one rank trains on this machine's processor: others cannot be had to themselves.
fn measure<D: Device>(device: &D, recipe: &Recipe, rows: &DataSize) -> Result<Option<Measured>, Failure> {
    let alone = device.axes().all.size() == 1 && device.room().is_none();
    let shape = plan::shape(recipe, rows.extent, device.axes().place);
    Ok(alone.then(|| rehearse(device, recipe, shape, L0)).transpose()?)
}

fn budget(recipe: &Recipe, (plan, rows): (&Plan, &DataSize), left: &Left, measured: &Measured) -> Budget {
    Budget::of(&Terms {
        recipe,
        mesh: kernels::mesh::Mesh::ONE,
        width: plan.width,
        row_bytes: rows.extent.row_bytes() as f64,
        steps_done: plan.steps - left.steps,
        rows: left.rows,
        eval_rows: rows.extent.eval_rows,
        step_s: measured.step_s,
        forward_s: measured.forward_s,
        copy: measured.copy,
        storage: STORAGE * 1e9,
        buffer: plan.buffer_bytes,
        mtbf: MTBF,
        price: None,
    })
}

fn show_budget(budget: &Budget) {
    let mut lines = budget.of_time();
    lines.extend(budget.of_storage());
    lines.push(("recommended checkpoint.every", budget::in_words(budget.checkpoints.recommended_every)));
    table::print("with steps as measured here", &lines);
    table::say(format!(
        "Once {L0} features fire on a row; before that steps take longer. Storage is taken to read and write {STORAGE} GB/s: sae plan --cpu \
         takes another rate."
    ));
}

/// Says when the run may begin, and may not have the memory that it takes at most.
fn warn_of_little_memory(device: &impl Device, plan: &Plan, host_ranks: usize) {
    let needed = plan.memory_bytes().saturating_mul(host_ranks as u64);
    if let (None, Some(available)) = (device.room(), memory::available().filter(|&available| available < needed)) {
        tracing::warn!(
            "this machine has {} of memory available, and the run takes up to {}: lower train.batch, data.window_bytes or sae.features",
            HumanBytes(available),
            HumanBytes(needed)
        );
    }
}

/// Says when the checkpoints would fill the disk.
fn warn_of_little_room(store: &Store, recipe: &Recipe, plan: &Plan, budget: Option<&Budget>) {
    let most = recipe.checkpoint.keep as u64 + 1 + u64::from(recipe.checkpoint.best);
    let needed = budget.map_or(most.saturating_mul(plan.checkpoint_bytes), |budget| budget.checkpoints.peak_bytes);
    if let Some(free) = store.local_path().and_then(disk::free_bytes).filter(|&free| free < needed) {
        tracing::warn!(
            "{} has {} free, and checkpoints take up to {} at once: free some space, lower checkpoint.keep, or choose another run.dir",
            store.url(),
            HumanBytes(free),
            HumanBytes(needed)
        );
    }
}

//! `sae train --dry-run`: what a run would read, hold and write, and whether it could begin. Whatever would end a run at its start ends
//! this with the same exit code; nothing is left anywhere.

use indicatif::{HumanBytes, HumanCount};
use kernels::Device;
use loader::Store;
use trainer::data::{self, Data};
use trainer::plan::{self, Plan};
use trainer::recipe::Recipe;
use trainer::rehearsal::{Measured, rehearse};
use trainer::survey::Survey;
use trainer::{run_dir, train};

use crate::args::{L0, MTBF};
use crate::budget::{self, Budget, Terms};
use crate::failure::Failure;
use crate::job::STORAGE;
use crate::{contents, disk, recipes, table};

/// Looks at everything and prints.
pub fn run(recipe: &Recipe, resume: bool, device: &impl Device, host_ranks: usize) -> Result<(), Failure> {
    let store = Store::open(&recipe.run.dir)?;
    run_dir::check(&store, recipe, resume)?;
    run_dir::check_writable(&store)?;
    if let Some(spec) = data::to_synthesize(recipe)? {
        for url in recipe.data.train.iter().chain(&recipe.data.eval) {
            run_dir::check_writable(&Store::open(url)?)?;
        }
        train::check_before_synthesis(device, recipe, spec)?;
        table::say(recipe.to_toml());
        let made = recipes::synthetic(spec);
        table::say(format!("# not there yet: training makes {made} first; sae plan reckons with them"));
        return Ok(());
    }
    let data = Data::open(recipe, resume.then_some(&store))?;
    let plan = Plan::of(device, recipe, &data, host_ranks)?;
    let survey = train::check(device, recipe, &data, resume.then_some(&store))?;
    table::say(recipe.to_toml());
    contents::print("data.train", &data.train.contents());
    if let Some(eval) = &data.eval {
        contents::print("data.eval", &eval.contents());
    }
    show(recipe, (&plan, survey.as_ref()), device);
    if let Some(survey) = survey {
        survey.tell(&data);
    }
    let measured = measure(device, recipe, &data)?;
    let budget = measured.map(|measured| budget(recipe, (&plan, &data), &measured));
    match &budget {
        Some(budget) => show_budget(budget),
        None => table::say("what it takes of time and storage on several ranks or GPUs: sae plan"),
    }
    warn_of_little_room(&store, recipe, &plan, budget.as_ref());
    table::say("next: the same command without --dry-run");
    Ok(())
}

fn show(recipe: &Recipe, (plan, survey): (&Plan, Option<&Survey>), device: &impl Device) {
    let mut rows = vec![
        ("device", device.describe()),
        ("rows × width", format!("{} × {} {}", HumanCount(plan.rows), plan.width, plan.dtype)),
        ("order", plan.order.clone()),
        ("steps", HumanCount(plan.steps).to_string()),
        ("parameters", HumanCount(plan.parameters).to_string()),
        ("read", HumanBytes(plan.bytes_read).to_string()),
        ("memory: weights and moments", HumanBytes(plan.weight_bytes).to_string()),
        ("memory: step, at most", HumanBytes(plan.step_bytes).to_string()),
        ("memory: rows read ahead, at most", HumanBytes(plan.stream_bytes).to_string()),
        ("memory: sample, first weights, evaluation or saving, at most", HumanBytes(plan.passing_bytes).to_string()),
        ("memory: altogether, at most", HumanBytes(plan.memory_bytes()).to_string()),
        ("of a checkpoint kept in memory, at most", HumanBytes(plan.buffer_bytes).to_string()),
        ("written at each checkpoint", HumanBytes(plan.checkpoint_bytes).to_string()),
        ("checkpoints kept", kept(recipe)),
    ];
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
fn measure<D: Device>(device: &D, recipe: &Recipe, data: &Data) -> Result<Option<Measured>, Failure> {
    let alone = device.axes().all.size() == 1 && device.room().is_none();
    let shape = plan::shape(recipe, data.extent(), device.axes().place);
    Ok(alone.then(|| rehearse(device, recipe, shape, L0)).transpose()?)
}

fn budget(recipe: &Recipe, (plan, data): (&Plan, &Data), measured: &Measured) -> Budget {
    Budget::of(&Terms {
        recipe,
        mesh: kernels::mesh::Mesh::ONE,
        width: plan.width,
        row_bytes: data.train.row_bytes() as f64,
        rows: plan.rows,
        eval_rows: data.eval.as_ref().map(loader::Dataset::rows),
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
    lines.push(("recommended checkpoint.every", budget::words(budget.checkpoints.recommended_every)));
    table::print("with steps as measured here", &lines);
    table::say(format!(
        "Once {L0} features fire on a row; before that steps take longer. Storage is taken to read and write {STORAGE} GB/s: sae plan --cpu \
         reckons with another rate."
    ));
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

//! `sae export`.

use kernels::Dictionary as _;
use kernels::cpu::Cpu;
use loader::Store;
use trainer::export::{Source, saelens};
use trainer::{checkpoint, evaluate};

use crate::args::{Export, Format};
use crate::failure::Failure;
use crate::table;

/// Writes the dictionary of a checkpoint in another tool's format.
pub fn run(args: &Export) -> Result<(), Failure> {
    let (store, found) = checkpoint::open(&args.run)?;
    let recipe = &found.manifest.recipe;
    let device = Cpu::new(recipe.train.threads)?;
    let sae = evaluate::load(&device, &store, &found, 1)?;
    let alive: Option<Vec<usize>> = if args.alive_only {
        let horizon = found.manifest.tokens.saturating_sub(recipe.train.dead_window);
        let last_fired_f = checkpoint::load_clocks(&store, &found)?;
        Some((0..last_fired_f.len()).filter(|&feature| last_fired_f[feature] > horizon).collect())
    } else {
        None
    };
    if alive.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::data("every feature is dead: there is nothing to export with --alive-only"));
    }
    let out = Store::open(&args.out)?;
    if out.head("cfg.json")?.is_some() {
        return Err(Failure::arguments(format!("{} already holds an export: choose another --out", out.url())));
    }
    let source = Source {
        model: args.model.clone(),
        hook: args.hook.clone(),
        dataset: args.dataset.clone(),
        context_size: args.context_size,
    };
    match args.format {
        Format::Saelens => saelens(&out, &sae, found.manifest.scale, alive.as_deref(), &source)?,
    }
    let rows = [
        ("checkpoint", found.folder.clone()),
        ("features", alive.map_or(sae.shape().features, |alive| alive.len()).to_string()),
        ("width", sae.shape().width.to_string()),
        ("scale folded in", table::number(f64::from(found.manifest.scale))),
    ];
    table::print(&args.out, &rows);
    table::say(format!("next, in Python: from sae_lens import SAE; sae = SAE.load_from_disk({:?})", args.out));
    Ok(())
}

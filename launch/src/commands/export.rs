//! `sae export`.

use indicatif::HumanCount;
use kernels::cpu::Cpu;
use loader::Store;
use trainer::checkpoint;
use trainer::export::{CONFIG, Form, INDEX, saelens};

use crate::args::{Export, Format};
use crate::failure::Failure;
use crate::{origin, table};

/// Writes the dictionary of a checkpoint in another tool's format.
pub fn run(args: &Export) -> Result<(), Failure> {
    let (store, found) = checkpoint::open_which(&args.run, args.checkpoint)?;
    let recipe = &found.manifest.recipe;
    let device = Cpu::new(recipe.train.threads)?;
    let (tokens, window) = (found.manifest.tokens, recipe.train.dead_window);
    let alive: Option<Vec<usize>> = if args.alive_only {
        if tokens < window {
            tracing::warn!(
                tokens,
                window,
                "the run has trained on {} rows and train.dead_window is {}: --alive-only leaves out what was silent over all of them",
                HumanCount(tokens),
                HumanCount(window)
            );
        }
        let horizon = tokens.saturating_sub(window);
        let last_fired_f = checkpoint::load_clocks(&store, &found)?;
        Some((0..last_fired_f.len()).filter(|&feature| last_fired_f[feature] > horizon).collect())
    } else {
        None
    };
    if alive.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::data("every feature is dead: there is nothing to export with --alive-only"));
    }
    let out = Store::open(&args.out)?;
    for name in [CONFIG, INDEX] {
        if out.head(name)?.is_some() {
            return Err(Failure::arguments(format!("{} already holds an export: choose another --out", out.url())));
        }
    }
    let origin = origin::of(args);
    let form = Form { dtype: args.dtype.into(), unit_norm: args.unit_norm, part_bytes: args.max_shard_size };
    let written = match args.format {
        Format::Saelens => saelens(&out, (&device, &store, &found), alive.as_deref(), form, &origin)?,
    };
    if args.unit_norm && written.without_direction > 0 {
        tracing::warn!(
            "{} features have a decoder row of zeros, which no factor gives norm 1: they stay as they are",
            HumanCount(written.without_direction as u64)
        );
    }
    let features = alive.map_or(found.manifest.features, |alive| alive.len());
    let left_out = found.manifest.features - features;
    let of_window = if left_out > 0 {
        format!(
            ", {} silent over the last {} rows left out",
            HumanCount(left_out as u64),
            HumanCount(window.min(tokens))
        )
    } else {
        String::new()
    };
    let rows = [
        ("checkpoint", found.folder.clone()),
        ("features", format!("{}{of_window}", HumanCount(features as u64))),
        ("width", found.manifest.width.to_string()),
        ("numbers", form.dtype.name().to_owned()),
        ("scale folded in", table::number(f64::from(found.manifest.scale))),
        ("decoder rows", if args.unit_norm { "of norm 1" } else { "as trained" }.to_owned()),
        ("parts", written.parts.to_string()),
    ];
    table::print(&args.out, &rows);
    let folder = match written.parts {
        1 => args.out.clone(),
        parts => format!("{}/part-00001-of-{parts:05}", args.out.trim_end_matches('/')),
    };
    let whole = if written.parts == 1 { "" } else { " (a part; x̂ is the sum of those of all parts)" };
    table::say(format!("next, in Python: from sae_lens import SAE; sae = SAE.load_from_disk({folder:?}){whole}"));
    Ok(())
}

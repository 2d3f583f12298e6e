//! `sae export`.

use indicatif::HumanCount;
use kernels::cpu::Cpu;
use loader::Store;
use trainer::checkpoint;
use trainer::export::{CONFIG, CONFIG_OF_DICTIONARY_LEARNING, Form, INDEX, WEIGHTS_OF_DICTIONARY_LEARNING, export};
use trainer::trained::Trained;

use crate::args::{Export, Format};
use crate::failure::Failure;
use crate::{origin, table};

/// Writes a dictionary in another tool's format.
pub fn run(args: &Export) -> Result<(), Failure> {
    let trained = Trained::open_verified(&args.run, args.checkpoint)?;
    let train = trained.train();
    let device = Cpu::new(train.threads)?;
    let tokens = trained.checkpoint().map_or(0, |(_, found)| found.manifest.tokens);
    let window = train.dead_window;
    let alive = match args.alive_only {
        true => Some(alive(&trained, tokens, window)?),
        false => None,
    };
    let out = Store::open(&args.out)?;
    for name in [CONFIG, INDEX, CONFIG_OF_DICTIONARY_LEARNING] {
        if out.head(name)?.is_some() {
            return Err(Failure::arguments(format!("{} already holds an export: choose another --out", out.url())));
        }
    }
    let origin = origin::of(args, &trained);
    let form = Form {
        format: args.format.into(),
        dtype: args.dtype.into(),
        unit_norm: args.unit_norm,
        part_bytes: args.max_shard_size,
    };
    let written = export(&out, (&device, &trained), alive.as_deref(), form, &origin)?;
    if args.unit_norm && written.without_direction > 0 {
        tracing::warn!(
            "{} features have a decoder row of zeros, which no factor gives norm 1: they stay as they are",
            HumanCount(written.without_direction as u64)
        );
    }
    let features = alive.map_or(trained.features(), |alive| alive.len());
    let left_out = trained.features() - features;
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
        ("dictionary", trained.checkpoint().map_or_else(|| trained.name(), |(_, found)| found.folder.clone())),
        ("features", format!("{}{of_window}", HumanCount(features as u64))),
        ("width", trained.width().to_string()),
        ("numbers", form.dtype.name().to_owned()),
        ("scale folded in", table::number(f64::from(trained.scale()))),
        ("decoder rows", if args.unit_norm { "of norm 1" } else { "as trained" }.to_owned()),
        ("parts", written.parts.to_string()),
    ];
    table::print(&args.out, &rows);
    let folder = match written.parts {
        1 => args.out.clone(),
        parts => format!("{}/part-00001-of-{parts:05}", args.out.trim_end_matches('/')),
    };
    let whole = if written.parts == 1 { "" } else { " (a part; x̂ is the sum of those of all parts)" };
    table::say(match args.format {
        Format::Saelens => {
            format!("next, in Python: from sae_lens import SAE; sae = SAE.load_from_disk({folder:?}){whole}")
        }
        Format::DictionaryLearning => {
            let file = format!("{}/{WEIGHTS_OF_DICTIONARY_LEARNING}", folder.trim_end_matches('/'));
            format!(
                "next, in Python: from dictionary_learning.dictionary import AutoEncoderNew; from safetensors.torch import load_file; \
                 sae = AutoEncoderNew({}, {features}); sae.load_state_dict(load_file({file:?}))",
                trained.width()
            )
        }
    });
    Ok(())
}

/// The features that have fired within the window.
fn alive(trained: &Trained, tokens: u64, window: u64) -> Result<Vec<usize>, Failure> {
    let Some((store, found)) = trained.checkpoint() else {
        return Err(Failure::arguments(
            "--alive-only needs a run or a checkpoint: an export does not say when a feature fired last",
        ));
    };
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
    let last_fired_f = checkpoint::load_clocks(store, found)?;
    let alive: Vec<usize> = (0..last_fired_f.len()).filter(|&feature| last_fired_f[feature] > horizon).collect();
    if alive.is_empty() {
        return Err(Failure::data("every feature is dead: there is nothing to export with --alive-only"));
    }
    Ok(alive)
}

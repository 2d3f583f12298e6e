//! Where a dictionary's training rows came from, for other tools: by flags, or else as the manifest beside the rows says.

use loader::{MANIFEST, Manifest, Source, Store};
use serde_json::Value;
use trainer::checkpoint;
use trainer::export::Origin;

use crate::args::Export;

/// What is known. Rows that are gone by now, or whose manifest says nothing, leave only what flags say.
pub fn of(args: &Export) -> Origin {
    let source = said(args).unwrap_or_default();
    let text = |flag: &Option<String>, key: &str| {
        let said = || source.get(key).and_then(Value::as_str).map(str::to_owned);
        flag.clone().or_else(said).unwrap_or_else(|| "unknown".into())
    };
    let size = source.get("context_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
    let begins = source.get("prepend_bos").and_then(Value::as_bool);
    Origin {
        model: text(&args.model, "model"),
        model_class: args.model_class_name.clone(),
        hook: text(&args.hook, "hook_name"),
        hook_head: args.hook_head_index,
        dataset: text(&args.dataset, "dataset"),
        context_size: args.context_size.or(size).unwrap_or(1024),
        prepend_bos: args.prepend_bos.or(begins).unwrap_or(true),
    }
}

/// What the manifest of the training rows says.
fn said(args: &Export) -> Option<Source> {
    let (_, found) = checkpoint::open_which(&args.run, args.checkpoint).ok()?;
    let url = found.manifest.recipe.data.train.first()?.clone();
    let json = Store::open(&url).and_then(|store| store.get(MANIFEST)).ok()?;
    Manifest::from_json(&json, &url).ok()?.source
}

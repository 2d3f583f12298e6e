//! Where a dictionary's training rows came from, for other tools: by flags, or else as the manifests beside the rows say.

use loader::{Dataset, MANIFEST, Manifest, OpenOptions, Source, Store};
use serde_json::Value;
use trainer::checkpoint;
use trainer::export::Origin;

use crate::args::Export;

/// What is known. Rows that are gone by now, or are others than those trained on, or whose manifests say nothing or differ, leave only what
/// flags say.
pub fn of(args: &Export) -> Origin {
    let sources = said(args);
    let said = |key: &str| {
        let mut values = sources.iter().map(|source| source.get(key));
        let first = values.next()?;
        if values.any(|value| value != first) {
            tracing::warn!("the manifests of data.train say different things of {key}: it stays unknown");
            return None;
        }
        first
    };
    let text = |flag: &Option<String>, key: &str| {
        let said = || said(key).and_then(Value::as_str).map(str::to_owned);
        flag.clone().or_else(said).unwrap_or_else(|| "unknown".into())
    };
    let size = || said("context_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
    let begins = || said("prepend_bos").and_then(Value::as_bool);
    Origin {
        model: text(&args.model, "model"),
        model_class: args.model_class_name.clone(),
        hook: text(&args.hook, "hook_name"),
        hook_head: args.hook_head_index,
        dataset: text(&args.dataset, "dataset"),
        context_size: args.context_size.or_else(size).unwrap_or(1024),
        prepend_bos: args.prepend_bos.or_else(begins).unwrap_or(true),
    }
}

/// What the manifests of the training rows say, one for each place; nothing where one of them says nothing, or where the rows there are not
/// those of the run.
fn said(args: &Export) -> Vec<Source> {
    let Ok((_, found)) = checkpoint::open_which(&args.run, args.checkpoint) else { return Vec::new() };
    let data = &found.manifest.recipe.data;
    let read = |url: &String| {
        let json = Store::open(url).and_then(|store| store.get(MANIFEST)).ok()?;
        Manifest::from_json(&json, url).ok()?.source
    };
    let Some(sources) = data.train.iter().map(read).collect::<Option<Vec<Source>>>() else { return Vec::new() };
    let options = OpenOptions { column: data.column.clone(), ..OpenOptions::default() };
    let now = Dataset::open(&data.train, &options).map(|data| data.identity());
    let then = found.manifest.cursor.origin.as_ref().map(|origin| &origin.identity);
    match now {
        Ok(now) if then == Some(&now) => sources,
        _ => {
            tracing::warn!(
                "the rows at {} are not those that the run was trained on: what their manifest says of model and hook is left out; give it \
                 with --model, --hook, --context-size, --prepend-bos and --dataset",
                data.train.join(", ")
            );
            Vec::new()
        }
    }
}

//! Where a dictionary's training rows came from, for other tools: by flags, or else as the manifests beside the rows said when the run began.

use serde_json::Value;
use trainer::export::Origin;
use trainer::trained::Trained;

use crate::args::Export;

/// What is known. Of several places only that is, which the manifests of all say alike.
pub fn of(args: &Export, trained: &Trained) -> Origin {
    let source = trained.checkpoint().and_then(|(_, found)| found.manifest.source.as_ref());
    let said = |key: &str| source.and_then(|source| source.get(key));
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

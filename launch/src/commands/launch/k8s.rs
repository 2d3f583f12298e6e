//! `sae launch k8s`.

use loader::Store;
use serde_json::{Value, json};

use crate::args::{K8s, Log, log_words};
use crate::failure::Failure;
use crate::template::fill;
use crate::{job, recipes, table};

/// Prints the manifest. The recipe travels in it, so that an image serves all runs.
pub fn run(args: &K8s, log: Log) -> Result<(), Failure> {
    let train = args.train.parse_job()?;
    let recipe = recipes::read(&train.recipe, &train.set)?;
    job::mesh_of(train.mesh, args.ranks as usize, &recipe)?;
    if Store::open(&recipe.run.dir)?.local_path().is_some() {
        tracing::warn!(
            "run.dir = \"{}\" is a folder: unless a volume is mounted there, it ends with the pod",
            recipe.run.dir
        );
    }
    let device = if args.gpu { "cuda" } else { "cpu" };
    let after = ["/etc/sae/recipe.toml", "--resume-or-start", "--device", device];
    let mesh = train.mesh.map(|mesh| mesh.to_string());
    let mesh: Vec<&str> = mesh.iter().flat_map(|mesh| ["--mesh", mesh]).collect();
    let words = [&["sae", "train"][..], log_words(log), &after, &mesh].concat();
    let secrets: Vec<Value> = args.secret.iter().map(|name| json!({ "secretRef": { "name": name } })).collect();
    let limits = if args.gpu { json!({ "nvidia.com/gpu": 1 }) } else { json!({}) };
    // JSON is YAML, and quotes whatever is in a value.
    let manifest = fill(
        include_str!("../../../templates/jobset.yaml"),
        &[
            ("name", json!(args.name).to_string()),
            ("recipe", json!(recipe.to_toml()).to_string()),
            ("ranks", args.ranks.to_string()),
            ("restarts", args.restarts.to_string()),
            ("save_s", args.save_s.to_string()),
            ("image", json!(args.image).to_string()),
            ("command", json!(words).to_string()),
            ("secrets", json!(secrets).to_string()),
            ("resources", json!({ "limits": limits }).to_string()),
        ],
    );
    table::say(manifest.trim_end());
    Ok(())
}

//! `sae synth`.

use indicatif::HumanCount;
use loader::synth::{self, Spec};
use loader::{Dtype, Store};

use crate::args::Synth;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::table;

/// Writes the shards, their manifest and the true directions.
pub fn run(args: &Synth) -> Result<(), Failure> {
    let dtypes = [Dtype::F16, Dtype::Bf16, Dtype::F32];
    let dtype = dtypes
        .into_iter()
        .find(|dtype| dtype.name() == args.dtype)
        .ok_or_else(|| Failure::arguments(format!("--dtype {}: write f16, bf16 or f32", args.dtype)))?;
    let spec = Spec {
        features: args.features,
        width: args.width,
        rows: args.rows,
        shards: args.shards,
        dtype,
        active: args.active,
        zipf: args.zipf,
        groups: args.groups,
        group_correlation: args.group_correlation,
        parents: args.parents,
        children: args.children,
        noise: args.noise,
        norm_tail: args.norm_tail,
        seed: args.seed,
        set: args.set,
    };
    let store = Store::open(&args.out)?;
    let mut bar = Bar::new("writing", 0, spec.rows);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let manifest = synth::write(&spec, &store, threads, &mut |rows| bar.set(rows))?;
    bar.finish();
    let rows = [
        ("rows", HumanCount(args.rows).to_string()),
        ("width", args.width.to_string()),
        ("true directions", HumanCount(args.features as u64).to_string()),
        ("shards", manifest.shards.len().to_string()),
    ];
    table::print(&args.out, &rows);
    table::say(format!("next: sae inspect {}", table::quoted(&args.out)));
    Ok(())
}

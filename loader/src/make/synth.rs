//! Synthetic activations with known true directions: the ground truth that recovery is measured against.

mod model;
mod spec;

use rayon::prelude::*;
use safetensors::tensor::TensorView;

use crate::{Error, Manifest, Result, ShardWriter, Store, WriteOptions};
pub use spec::Spec;

use model::{Block, Model};

pub use crate::make::layout::COLUMN;

/// Blocks generated before they are written: bounds the memory.
const BLOCKS: u64 = 64;

/// Writes the shards, their manifest and `truth.safetensors`: `directions` [N, D] f32, `frequencies` [N] f64 (expected per
/// row), `occurrences` [N] u64 (in the rows written), `parents` [N] i64 (-1: none). `progress` gets the rows written so far.
pub fn write(spec: &Spec, store: &Store, threads: usize, progress: &mut dyn FnMut(u64)) -> Result<Manifest> {
    spec.validate()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::Arguments(format!("cannot start {threads} threads: {e}")))?;
    let mut options = WriteOptions::new(spec.width, spec.dtype);
    options.shard_rows = spec.rows.div_ceil(spec.shards as u64);
    // Rows are independent draws: storage order is as good as any.
    options.prepared = true;
    let mut writer = ShardWriter::create(store, options)?;
    let model = Model::new(spec)?;
    let mut occurrences = vec![0u64; spec.features];
    let (blocks, mut written) = (spec.rows.div_ceil(model::BLOCK_ROWS), 0);
    for first in (0..blocks).step_by(BLOCKS as usize) {
        let range = first..(first + BLOCKS).min(blocks);
        let made: Vec<Block> = pool.install(|| range.into_par_iter().map(|b| model.block(b)).collect());
        for block in made {
            writer.write(&block.rows, &[])?;
            block.fired.iter().for_each(|&f| occurrences[f as usize] += 1);
            written += (block.rows.len() / (spec.width * spec.dtype.size())) as u64;
        }
        progress(written);
    }
    store.put("truth.safetensors", truth(&model, &occurrences)?)?;
    writer.finish()
}

fn truth(model: &Model, occurrences: &[u64]) -> Result<Vec<u8>> {
    let features = occurrences.len();
    let width = model.directions_fd.len() / features;
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes);
    let tensors = [
        (
            "directions",
            view(safetensors::Dtype::F32, vec![features, width], bytemuck::cast_slice(&model.directions_fd)),
        ),
        ("frequencies", view(safetensors::Dtype::F64, vec![features], bytemuck::cast_slice(&model.frequencies))),
        ("occurrences", view(safetensors::Dtype::U64, vec![features], bytemuck::cast_slice(occurrences))),
        ("parents", view(safetensors::Dtype::I64, vec![features], bytemuck::cast_slice(&model.parents))),
    ];
    let fail = |e: safetensors::SafeTensorError| Error::Arguments(format!("truth.safetensors: {e}"));
    let tensors = tensors.into_iter().map(|(name, t)| t.map(|t| (name, t))).collect::<std::result::Result<Vec<_>, _>>();
    safetensors::serialize(tensors.map_err(fail)?, None).map_err(fail)
}

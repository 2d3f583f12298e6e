//! From streams to rows: the rows of a part as they are stored, their columns, and what is said of their norms.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, Int64Array, ListBuilder, UInt32Builder, UInt64Array};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use loader::{Dtype, Norms, TOP};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rayon::prelude::*;

use crate::contexts::{Context, Part, Sinks};
use crate::error::{Error, Help, Result};
use crate::model::Model;
use crate::model::scratch::Scratch;

/// Norms of a layer's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerNorms {
    /// How many rows.
    pub rows: u64,
    /// Σ‖x‖.
    pub sum: f64,
    /// Σ‖x‖².
    pub squares: f64,
    /// The largest ‖x‖.
    pub most: f64,
}

impl LayerNorms {
    /// E‖x‖, and nothing of no rows.
    pub fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }

    fn see(&mut self, norm: f64) {
        *self = LayerNorms {
            rows: self.rows + 1,
            sum: self.sum + norm,
            squares: self.squares + norm * norm,
            most: self.most.max(norm),
        };
    }

    pub(crate) fn add(&mut self, other: &LayerNorms) {
        self.rows += other.rows;
        self.sum += other.sum;
        self.squares += other.squares;
        self.most = self.most.max(other.most);
    }
}

/// What the rows of a first batch carry of E‖x‖².
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heavy {
    /// The layer.
    pub layer: usize,
    /// Rows looked at, those that are left out included.
    pub rows: u64,
    /// Share of E‖x‖² in attention sinks: the first rows of contexts, and those of BOS.
    pub sinks: f64,
    /// Median norm of the sinks, and of the others.
    pub medians: (f64, f64),
    /// Share in the largest hundredth of the rows that are kept.
    pub top: f64,
}

/// Computes the rows of parts.
pub(crate) struct Maker<'a> {
    pub(crate) model: &'a Model,
    pub(crate) dtype: Dtype,
    pub(crate) sinks: Sinks,
    /// Contexts of a batch.
    pub(crate) batch: usize,
    pub(crate) threads: &'a rayon::ThreadPool,
    pub(crate) stop: &'a AtomicBool,
    /// Memory of threads between batches.
    pub(crate) scratch: Mutex<Vec<Scratch>>,
}

/// The rows of some contexts: for each layer, as they are stored.
pub(crate) struct Made {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) norms: Vec<LayerNorms>,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
}

impl Maker<'_> {
    /// The rows of a part, batch by batch in order; `seen` hears of each batch when it is done.
    pub(crate) fn rows(&self, part: &Part, seen: &(dyn Fn(&Made) + Sync)) -> Result<Vec<Made>> {
        let batches: Vec<&[Context]> = part.contexts.chunks(self.batch).collect();
        self.threads.install(|| {
            let made = batches.into_par_iter().map(|contexts| {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let made = self.batch(contexts)?;
                seen(&made);
                Ok(made)
            });
            made.collect()
        })
    }

    fn batch(&self, contexts: &[Context]) -> Result<Made> {
        let width = self.model.width();
        let (tokens, lengths) = joined(contexts);
        let keeps = |(at, &token): (usize, &u32)| self.sinks.keeps(at, token);
        let kept: Vec<bool> = contexts.iter().flat_map(|c| c.tokens.iter().enumerate().map(keeps)).collect();
        let rows = kept.iter().filter(|kept| **kept).count();
        let layers = self.model.layers();
        let mut made = Made {
            layers: Vec::with_capacity(layers.len()),
            norms: vec![LayerNorms::default(); layers.len()],
            rows: rows as u64,
            tokens: tokens.len() as u64,
        };
        let mut problem: Option<Error> = None;
        self.streams(&tokens, &lengths, &mut |index, x| {
            let row_bytes = width * self.dtype.size();
            let mut stored = vec![0; rows * row_bytes];
            let kept_rows = x.chunks_exact(width).zip(&kept).filter(|(_, kept)| **kept).map(|(row, _)| row);
            for (row, to) in kept_rows.zip(stored.chunks_exact_mut(row_bytes)) {
                self.dtype.from_f32(row, to);
                made.norms[index].see(norm(row));
                if self.dtype == Dtype::F16 && row.iter().any(|value| value.abs() > 65504.0) {
                    problem.get_or_insert_with(|| {
                        let text = "has numbers beyond 65504, which f16 cannot hold";
                        Error::arguments(format!("layer {} {text}", layers[index])).with(Help::Dtype)
                    });
                }
            }
            if !made.norms[index].squares.is_finite() {
                // The model's fault comes first, in whatever layer it shows.
                if !matches!(problem, Some(Error::Data { .. })) {
                    let text =
                        "has rows with NaN or infinity: its weights are damaged, or are not of this architecture";
                    problem = Some(Error::data("the model", format!("layer {} {text}", layers[index])));
                }
            }
            made.layers.push(stored);
        });
        match problem {
            None => Ok(made),
            Some(problem) => Err(problem),
        }
    }

    fn streams(&self, tokens: &[u32], lengths: &[usize], each: &mut dyn FnMut(usize, &[f32])) {
        let lock = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        self.model.streams(tokens, lengths, &mut scratch, each);
        lock().push(scratch);
    }

    /// What the largest rows of some contexts carry.
    pub(crate) fn heavy(&self, contexts: &[Context]) -> Vec<Heavy> {
        let contexts = &contexts[..contexts.len().min(self.batch)];
        let (tokens, lengths) = joined(contexts);
        let is_sink = |(at, &token): (usize, &u32)| self.sinks.is(at, token);
        let are_sinks: Vec<bool> = contexts.iter().flat_map(|c| c.tokens.iter().enumerate().map(is_sink)).collect();
        let (width, mut found) = (self.model.width(), Vec::new());
        self.streams(&tokens, &lengths, &mut |index, x| {
            let (mut sinks, mut others) = (Vec::new(), Vec::new());
            for (row, &is_sink) in x.chunks_exact(width).zip(&are_sinks) {
                let norms = if is_sink { &mut sinks } else { &mut others };
                norms.push(norm(row));
            }
            let squares = |norms: &[f64]| norms.iter().map(|norm| norm * norm).sum::<f64>();
            let all = squares(&sinks) + squares(&others);
            let kept: Norms = if self.sinks.kept {
                sinks.iter().chain(&others).copied().collect()
            } else {
                others.iter().copied().collect()
            };
            let median = |norms: &[f64]| norms.iter().copied().collect::<Norms>().quantile(0.5).unwrap_or(0.0);
            found.push(Heavy {
                layer: self.model.layers()[index],
                rows: tokens.len() as u64,
                sinks: if all > 0.0 { squares(&sinks) / all } else { 0.0 },
                medians: (median(&sinks), median(&others)),
                top: kept.top_share(TOP).unwrap_or(0.0),
            });
        });
        found
    }
}

/// The tokens of contexts one after the other, and how many each has.
fn joined(contexts: &[Context]) -> (Vec<u32>, Vec<usize>) {
    let tokens = contexts.iter().flat_map(|context| context.tokens.iter().copied()).collect();
    (tokens, contexts.iter().map(|context| context.tokens.len()).collect())
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// The columns beside the rows of a part.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) context_id: Vec<u64>,
    pub(crate) pos: Vec<i32>,
    pub(crate) doc_id: Vec<i64>,
    pub(crate) token_id: Vec<i32>,
}

impl Beside {
    pub(crate) fn of(part: &Part, sinks: Sinks) -> Beside {
        let mut beside = Beside::default();
        for (context, number) in part.contexts.iter().zip(part.first..) {
            for (at, (&token, &document)) in context.tokens.iter().zip(&context.documents).enumerate() {
                if sinks.keeps(at, token) {
                    beside.context_id.push(number);
                    beside.pos.push(at as i32);
                    beside.doc_id.push(document as i64);
                    beside.token_id.push(token as i32);
                }
            }
        }
        let rows = part.rows as usize;
        beside.context_id.truncate(rows);
        beside.pos.truncate(rows);
        beside.doc_id.truncate(rows);
        beside.token_id.truncate(rows);
        beside
    }
}

/// The contexts of a part as a Parquet file: number, document of the first token, tokens.
pub(crate) fn contexts_file(part: &Part) -> Result<Vec<u8>> {
    let fail = |e: &dyn std::fmt::Display| Error::arguments(format!("the contexts of part {}: {e}", part.number));
    let item = Arc::new(Field::new("item", DataType::UInt32, false));
    let mut tokens = ListBuilder::new(UInt32Builder::new()).with_field(item);
    for context in &part.contexts {
        tokens.values().append_slice(&context.tokens);
        tokens.append(true);
    }
    let ids = UInt64Array::from_iter_values((part.first..).take(part.contexts.len()));
    let first = part.contexts.iter().map(|context| context.documents.first().map_or(0, |&id| id as i64));
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("context_id", Arc::new(ids), false),
        ("doc_id", Arc::new(Int64Array::from_iter_values(first)), false),
        ("token_ids", Arc::new(tokens.finish()), false),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).map_err(|e| fail(&e))?;
    let codec = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(codec).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).map_err(|e| fail(&e))?;
    writer.write(&batch).map_err(|e| fail(&e))?;
    writer.into_inner().map_err(|e| fail(&e))
}

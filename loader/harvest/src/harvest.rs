//! Workers that make the shards of a model and a text: parts of whole contexts, each made by its worker, and by another.
//!
//! A worker tokenizes the text from the newest marker before its part, so that no list of the text's contexts is needed; that takes a
//! thousandth of the time of the model.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use loader::parts::{Marker, Parts, Plan, Worker};
use loader::{ColumnType, Dtype, ExtraColumn, Location, Manifest, Source, Store, WriteOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::contexts::{Contexts, Form, Part, Sinks, Start, check_length};
use crate::error::{Error, Help, Result};
use crate::model::{Model, Place};
use crate::rows::{Beside, Heavy, LayerNorms, Made, Maker, contexts_file};
use crate::text::{Documents, Files, Position, Skipped, TextOptions};
use crate::tokens::{Bos, Tokenizer};

/// What is to be harvested.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder as Hugging Face lays it out, or a GGUF file; a path or URL.
    pub model: String,
    /// Its name for other tools; by default that of the folder or file.
    pub name: Option<String>,
    /// A tokenizer.json of its own.
    pub tokenizer: Option<String>,
    /// Files, folders, globs or URLs of text.
    pub text: Vec<String>,
    /// How text is read.
    pub reading: TextOptions,
    /// Layers whose streams are written: one into the output itself, several into a folder each.
    pub layers: Vec<usize>,
    /// Folder or URL.
    pub out: String,
    /// Tokens of a context.
    pub context: usize,
    /// Whether a context holds tokens of one document.
    pub by_document: bool,
    /// What stands in front of a context.
    pub bos: Bos,
    /// Whether the rows of attention sinks are kept: the first of a context, and those of BOS inside of it.
    pub keep_first: bool,
    /// Format of the rows.
    pub dtype: Dtype,
    /// Rows at most.
    pub rows: Option<u64>,
    /// Contexts that a thread computes at once; by default 512 tokens of them.
    pub batch: Option<usize>,
    /// Rows of a shard, about; by default what 32 MiB hold and about a minute makes.
    pub shard_rows: Option<u64>,
    /// Threads.
    pub threads: usize,
    /// Which parts this process makes.
    pub worker: Worker,
}

/// What happens meanwhile.
#[derive(Clone, Debug)]
pub enum Event {
    /// The model and the tokenizer are read.
    Read {
        /// What its own tools call its architecture.
        architecture: String,
        /// Blocks that are computed, and blocks that there are.
        blocks: (usize, usize),
        /// Numbers of a row.
        width: usize,
        /// Tokens around a context: before it, and behind.
        around: (Vec<u32>, Vec<u32>),
        /// Rows of a part, about.
        part_rows: u64,
        /// Parts that are there already.
        committed: u64,
    },
    /// The first batch is computed.
    Heavy(Vec<Heavy>),
    /// Another batch is.
    Progress(Progress),
}

/// How far this process is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Rows that it has made.
    pub rows: u64,
    /// Rows of the whole text before the part being made, and of this part so far, by any worker.
    pub reached: u64,
    /// Tokens that it has computed.
    pub tokens: u64,
    /// Rows of all, where that is known, or can be guessed by how much of the text is behind.
    pub total: Option<u64>,
    /// E‖x‖ of the last layer's rows that it has made.
    pub mean_norm: Option<f64>,
}

/// What a process came to.
#[derive(Clone, Debug)]
pub struct Done {
    /// Parts that it has made.
    pub parts: u64,
    /// Rows and tokens of them.
    pub rows: u64,
    /// Tokens that were computed for them.
    pub tokens: u64,
    /// Seconds from the first part's beginning to the last one's end.
    pub seconds: f64,
    /// Norms of the rows that it has made, by layer.
    pub norms: Vec<(usize, LayerNorms)>,
    /// Parts that there are, all of them.
    pub total: u64,
    /// Text that was left out of all of them.
    pub skipped: Skipped,
    /// Parts of other workers that are missing.
    pub missing: u64,
    /// The manifests with their folders, if all parts are there.
    pub manifests: Vec<(String, Manifest)>,
}

/// What a marker says of what comes behind its part.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Note {
    next: Start,
    last: bool,
}

impl Note {
    fn of(marker: &Marker) -> Option<Note> {
        serde_json::from_value(marker.note.clone()).ok()
    }
}

/// Makes what is missing of the parts of this worker, and the manifests once all parts are there.
///
/// # Errors
/// [`Error::Interrupted`] where `stop` is set meanwhile: the part being made is left. Those of models, tokenizers, text and stores.
pub fn harvest(options: &Options, stop: &AtomicBool, tell: &(dyn Fn(Event) + Sync)) -> Result<Done> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let threads = threads.map_err(|e| Error::arguments(format!("cannot start {} threads: {e}", options.threads)))?;
    check_apart(options)?;
    let place = Place::find(&options.model)?;
    let tokenizer = Tokenizer::read(&place, options.tokenizer.as_deref(), options.bos)?;
    check_length(options.context, &tokenizer)?;
    let files = Files::find(&options.text)?;
    files.check(&options.reading)?;
    let model = Model::read(place, &options.layers)?;
    model.check_context(options.context)?;
    let batch = options.batch.unwrap_or_else(|| (BATCH_TOKENS / options.context).max(1));
    let sinks =
        Sinks { bos: tokenizer.prefix().last().copied().filter(|_| !model.is_encoder()), kept: options.keep_first };
    let form = Form {
        length: options.context,
        by_document: options.by_document,
        sinks,
        vocabulary: model.vocabulary(),
        part: part_contexts(options, &model, batch),
        most_rows: options.rows,
    };
    let source = source(options, &model, &tokenizer);
    let plan = plan(options, (&model, &tokenizer, &files), &form, batch, &source)?;
    let parts = Parts::open(&Store::open(&options.out)?, &plan)?;
    let committed = parts.committed()?.len() as u64;
    tell(Event::Read {
        architecture: model.architecture().to_owned(),
        blocks: (model.layers().last().copied().unwrap_or(0), model.blocks()),
        width: model.width(),
        around: (tokenizer.prefix().to_vec(), tokenizer.suffix().to_vec()),
        part_rows: form.part * (options.context - usize::from(!options.keep_first)) as u64,
        committed,
    });
    let (dtype, scratch) = (options.dtype, Mutex::default());
    let maker = Maker { model: &model, dtype, sinks, batch, threads: &threads, stop, scratch };
    let documents = Documents::new(files.clone(), options.reading.clone(), Position::default());
    let contexts = Contexts::new(documents, &tokenizer, form)?;
    let norms = vec![LayerNorms::default(); model.layers().len()];
    let mut work = Work {
        options,
        parts: &parts,
        maker,
        contexts,
        files: &files,
        tell,
        norms,
        made: Progress::default(),
        count: 0,
    };
    let started = Instant::now();
    let Start { part: total, document: Position { skipped, .. }, .. } = work.run()?;
    let seconds = started.elapsed().as_secs_f64();
    let committed = parts.numbers()?;
    let missing = (0..total).filter(|part| !committed.contains(part)).count() as u64;
    let mut manifests = Vec::new();
    if missing == 0 {
        let named = |folder: &str| Some(of_layer(&source, &model, folder, skipped));
        let written = parts.finish(total, named)?;
        manifests = plan.folders.keys().cloned().zip(written).collect();
    }
    Ok(Done {
        parts: work.count,
        rows: work.made.rows,
        tokens: work.made.tokens,
        seconds,
        norms: model.layers().iter().copied().zip(work.norms).collect(),
        total,
        skipped,
        missing,
        manifests,
    })
}

/// Tokens that a thread computes at once: GEMMs want rows, caches want few.
const BATCH_TOKENS: usize = 512;

/// Bytes of all shards of a part, about.
const PART_BYTES: u64 = 32 << 20;

/// Operations of a part: about a minute of two cores.
const PART_FLOPS: f64 = 5e12;

/// Contexts of a part.
fn part_contexts(options: &Options, model: &Model, batch: usize) -> u64 {
    let row_bytes = (model.width() * options.dtype.size() * model.layers().len()) as u64;
    let by_time = (PART_FLOPS / model.flops()) as u64;
    let rows = options.shard_rows.unwrap_or_else(|| (PART_BYTES / row_bytes).min(by_time));
    let contexts = rows / options.context as u64;
    // Whole batches, for all threads to have one.
    match options.shard_rows {
        Some(_) => contexts.max(1),
        None => (contexts / (4 * batch as u64) * (4 * batch as u64)).max(batch as u64),
    }
}

/// The folder of a layer's shards.
fn folder(model: &Model, layer: usize) -> String {
    if model.layers().len() == 1 { String::new() } else { format!("layer-{layer}") }
}

/// Everything that decides bytes.
fn plan(
    options: &Options,
    (model, tokenizer, files): (&Model, &Tokenizer, &Files),
    form: &Form,
    batch: usize,
    source: &Source,
) -> Result<Plan> {
    /// The identities of more files stand in the plan by their hash.
    const NAMED: usize = 1000;
    let identity: Vec<Json> = files
        .identity()?
        .into_iter()
        .map(|(name, bytes, ends)| json!({"name": name, "bytes": bytes, "first_and_last_bytes": ends}))
        .collect();
    let hash = format!("{:032x}", xxh3_128(serde_json::to_string(&identity).unwrap_or_default().as_bytes()));
    let text = if identity.len() > NAMED { json!({"files": identity.len(), "hash": hash}) } else { json!(identity) };
    // That unreadable text is left out decides nothing of what was made before it was met.
    let more = json!({
        "command": "harvest",
        "layers": model.layers(),
        "text": text,
        "column": options.reading.column(),
        "split": options.reading.split().name(),
        "rows": form.most_rows,
        "follows": {
            "model_hash": model.hash(),
            "tokenizer_hash": tokenizer.hash(),
            "tokens_before_a_context": tokenizer.prefix(),
            "tokens_behind_a_context": tokenizer.suffix(),
            "shard_rows": form.part * options.context as u64,
            "batch": batch,
        },
    });
    let mut what = source.clone();
    what.retain(|key, _| !["model_hash", "tokenizer_hash"].contains(&key.as_str()));
    if let Json::Object(more) = more {
        what.extend(more);
    }
    let columns = [
        ("context_id", ColumnType::U64),
        ("pos", ColumnType::I32),
        ("doc_id", ColumnType::I64),
        ("token_id", ColumnType::I32),
    ];
    let columns: Vec<ExtraColumn> = columns.into_iter().map(|(name, kind)| ExtraColumn::new(name, kind)).collect();
    let layout = WriteOptions { columns, ..WriteOptions::new(model.width(), options.dtype) };
    let folders =
        model.layers().iter().map(|&layer| (folder(model, layer), layout.clone())).collect::<BTreeMap<_, _>>();
    Ok(Plan { what, folders })
}

/// Where the rows come from, as far as it is the same for all layers.
fn source(options: &Options, model: &Model, tokenizer: &Tokenizer) -> Source {
    let (name, revision) = names(&options.model);
    let last = |url: &str| url.rsplit('/').next().unwrap_or(url).to_owned();
    let source = json!({
        "tool": "sae harvest",
        "version": env!("CARGO_PKG_VERSION"),
        "model": options.name.clone().unwrap_or(name),
        "revision": revision,
        "model_hash": model.hash(),
        "architecture": model.architecture(),
        "context_size": options.context,
        "packed": !options.by_document,
        "prepend_bos": !tokenizer.prefix().is_empty(),
        "keep_first": options.keep_first,
        "tokenizer": last(tokenizer.url()),
        "tokenizer_hash": tokenizer.hash(),
        "dataset": options.text.iter().map(|text| text.trim_end_matches('/')).collect::<Vec<_>>().join(", "),
    });
    if let Json::Object(source) = source { source } else { Source::new() }
}

/// Refuses to write into the text: what is written there would be text when the same command goes on.
fn check_apart(options: &Options) -> Result<()> {
    let out = Store::open(&options.out)?;
    let overlaps =
        |text: &&String| Location::resolve(text).is_ok_and(|text| text.reaches(&out) || text.store().lies_in(&out));
    match options.text.iter().find(overlaps) {
        Some(text) => {
            Err(Error::arguments(format!("{} and the text {text} lie in each other: name another folder", options.out)))
        }
        None => Ok(()),
    }
}

/// The same of one layer, with what was left out.
fn of_layer(source: &Source, model: &Model, of: &str, skipped: Skipped) -> Source {
    let layer = model.layers().iter().copied().find(|&layer| folder(model, layer) == of).unwrap_or(0);
    let mut source = source.clone();
    source.insert("layer".into(), layer.into());
    source.insert("hook_name".into(), model.hook(layer).into());
    if !skipped.is_none() {
        source.insert("skipped".into(), json!(skipped));
    }
    source
}

/// The name of a model by its place, and its revision where the place is in the cache of Hugging Face's hub:
/// `models--OWNER--NAME/snapshots/REVISION`.
fn names(url: &str) -> (String, Option<String>) {
    let parts: Vec<&str> = url.split('/').filter(|part| !part.is_empty()).collect();
    let at = parts.iter().position(|part| *part == "snapshots").filter(|&at| at > 0 && at + 1 < parts.len());
    if let Some((at, name)) = at.and_then(|at| Some((at, parts[at - 1].strip_prefix("models--")?))) {
        return (name.replacen("--", "/", 1), Some(parts[at + 1].to_owned()));
    }
    let last = parts.last().copied().unwrap_or(url);
    (last.strip_suffix(".gguf").unwrap_or(last).to_owned(), None)
}

/// A worker at its work.
struct Work<'a> {
    options: &'a Options,
    parts: &'a Parts,
    maker: Maker<'a>,
    contexts: Contexts<'a>,
    files: &'a Files,
    tell: &'a (dyn Fn(Event) + Sync),
    norms: Vec<LayerNorms>,
    made: Progress,
    count: u64,
}

impl Work<'_> {
    /// Makes this worker's parts; where the part behind the last of all workers would begin.
    fn run(&mut self) -> Result<Start> {
        let worker = self.options.worker;
        let mut own = worker.index();
        loop {
            let committed = self.parts.committed()?;
            let last = committed.values().filter_map(|marker| Note::of(marker)).find(|note| note.last);
            while committed.contains_key(&own) {
                own += worker.count();
            }
            if let Some(last) = last.filter(|last| own >= last.next.part) {
                return Ok(last.next);
            }
            let newest = committed.range(..own).rev().find_map(|(_, marker)| Note::of(marker));
            if let Some(note) = newest.filter(|note| note.next.part > self.contexts.at().part) {
                self.contexts.seek(note.next)?;
            }
            while self.contexts.at().part < own {
                self.check_stop()?;
                match self.contexts.next()? {
                    Some(part) if part.is_last => return self.end(),
                    Some(_) => {}
                    None => return self.end(),
                }
            }
            match self.contexts.next()? {
                Some(part) => {
                    self.make(&part)?;
                    if part.is_last {
                        return self.end();
                    }
                }
                None => return self.end(),
            }
        }
    }

    /// Behind the last part.
    fn end(&self) -> Result<Start> {
        let end = self.contexts.at();
        if end.part > 0 {
            return Ok(end);
        }
        let skipped = match end.document.skipped {
            skipped if skipped.is_none() => String::new(),
            skipped => format!("; left out, because it cannot be read: {skipped}"),
        };
        let error = Error::data(self.options.text.join(", "), format!("has no text that gives a row{skipped}"));
        Err(if self.files.are_plain() { error } else { error.with(Help::Column) })
    }

    fn check_stop(&self) -> Result<()> {
        if self.maker.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn make(&mut self, part: &Part) -> Result<()> {
        if self.count == 0 {
            (self.tell)(Event::Heavy(self.maker.heavy(&part.contexts)));
        }
        let (next, before) = (self.contexts.at(), self.made);
        let total = self.total(next);
        let (rows, tokens, sums) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(LayerNorms::default()));
        let seen = |made: &Made| {
            let rows = rows.fetch_add(made.rows, Ordering::Relaxed) + made.rows;
            let tokens = tokens.fetch_add(made.tokens, Ordering::Relaxed) + made.tokens;
            let mut sums = sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            made.norms.last().into_iter().for_each(|norms| sums.add(norms));
            let reached = next.rows - part.rows + rows.min(part.rows);
            let (rows, tokens) = (before.rows + rows, before.tokens + tokens);
            (self.tell)(Event::Progress(Progress { rows, reached, tokens, total, mean_norm: sums.mean() }));
        };
        let made = self.maker.rows(part, &seen)?;
        self.write(part, &made)?;
        for made in &made {
            self.norms.iter_mut().zip(&made.norms).for_each(|(all, norms)| all.add(norms));
            self.made.tokens += made.tokens;
        }
        self.made.rows += part.rows;
        self.count += 1;
        Ok(())
    }

    /// Writes all files of a part, then its marker.
    fn write(&self, part: &Part, made: &[Made]) -> Result<()> {
        let beside = Beside::of(part, self.maker.sinks);
        let row_bytes = self.maker.model.width() * self.options.dtype.size();
        let mut marker = Marker::default();
        for (index, &layer) in self.maker.model.layers().iter().enumerate() {
            let name = folder(self.maker.model, layer);
            let mut writer = self.parts.shard(&name, part.number)?;
            let mut at = 0;
            for made in made {
                // The last context may be cut.
                let rows = (made.layers[index].len() / row_bytes).min(part.rows as usize - at);
                let range = at..at + rows;
                let columns = [
                    (&beside.context_id[range.clone()]).into(),
                    (&beside.pos[range.clone()]).into(),
                    (&beside.doc_id[range.clone()]).into(),
                    (&beside.token_id[range]).into(),
                ];
                writer.write(&made.layers[index][..rows * row_bytes], &columns)?;
                at += rows;
            }
            marker = marker.with_shard(&name, writer.finish()?);
        }
        let contexts = format!("_contexts/part-{:06}.parquet", part.number);
        self.parts.store().put(&contexts, contexts_file(part)?)?;
        let note = serde_json::to_value(Note { next: self.contexts.at(), last: part.is_last });
        let note = note.map_err(|e| Error::arguments(format!("the marker of part {}: {e}", part.number)))?;
        Ok(self.parts.commit(part.number, &marker.with_note(note))?)
    }

    /// Rows of all, as far as how much of the text is behind tells.
    fn total(&self, next: Start) -> Option<u64> {
        let share = self.files.share(next.document);
        let guess = share.filter(|share| *share > 0.0).map(|share| (next.rows as f64 / share) as u64);
        match (self.options.rows, guess) {
            (Some(rows), Some(guess)) => Some(rows.min(guess.max(next.rows))),
            (rows, guess) => rows.or(guess),
        }
    }
}

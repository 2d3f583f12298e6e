//! What `sae plan` prints: tables, or one JSON object whose names launch/recipes/README.md documents.

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::budget::{self, Budget, duration};
use crate::gpus::{Fewest, print_fewest};
use crate::table;

/// All that is known of a run beforehand.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The GPU's name, or the processor in words.
    pub device: String,
    /// Whether a step was made here and timed, instead of estimated.
    pub measured: bool,
    /// Ranks, each on a device of its own.
    pub gpus: usize,
    /// DATAxFEATURE.
    pub mesh: String,
    /// Rows of the run.
    pub rows: u64,
    /// `D`.
    pub width: usize,
    /// `F`.
    pub features: usize,
    /// `B`.
    pub batch: usize,
    /// Memory of a rank.
    pub memory: MemoryReport,
    /// A step's parts at the least, where they were estimated.
    pub floor: Option<Parts>,
    /// Seconds of a step as expected.
    pub step_s: f64,
    /// Part of a step, or `storage`, that takes longest.
    pub bound_by: String,
    /// Bytes of rows read from storage.
    pub read_bytes: u64,
    /// Bytes that a rank sends in a step.
    pub sent_bytes: u64,
    /// Speed of all GPUs over that of as many GPUs with room for all.
    pub efficiency: Option<f64>,
    /// Time, storage, cost.
    #[serde(flatten)]
    pub budget: Budget,
    /// Fewest GPUs for each memory mode.
    pub fewest_gpus: Vec<Fewest>,
    /// What was taken for granted.
    pub assumed: Assumed,
}

/// Bytes that a rank holds at most.
#[derive(Debug, Default, Serialize)]
pub struct MemoryReport {
    /// Weights of its shard, with copies.
    pub weights_bytes: u64,
    /// Moments and clocks of what it owns.
    pub moments_bytes: u64,
    /// Rows, lists and scratch of a step.
    pub step_bytes: u64,
    /// Altogether.
    pub total_bytes: u64,
    /// What the device has.
    pub device_bytes: Option<u64>,
    /// Whether it fits.
    pub fits: bool,
}

/// Seconds of a step's parts.
#[derive(Debug, Serialize)]
pub struct Parts {
    /// GEMMs of the encoder.
    pub encode_s: f64,
    /// Gathers of the decoder.
    pub decode_s: f64,
    /// Gathers of the gradient.
    pub backward_s: f64,
    /// Weights and moments through memory.
    pub adam_s: f64,
    /// Between ranks, waited for.
    pub exchange_s: f64,
    /// Between ranks, beside GEMMs; no part of the sum.
    pub hidden_s: f64,
    /// All that follows each other.
    pub total_s: f64,
}

/// What a plan takes for granted.
#[derive(Debug, Default, Serialize)]
pub struct Assumed {
    /// Active features of a row.
    pub l0: f64,
    /// Bytes a second of all machines to and from storage.
    pub storage_bytes_per_s: f64,
    /// Memory of a machine.
    pub host_memory_bytes: Option<u64>,
    /// Ranks that share it.
    pub host_ranks: usize,
    /// Bytes a second at which a rank copies what it saves.
    pub copy_bytes_per_s: f64,
    /// Hours between failures of a device.
    pub mtbf_hours: f64,
}

impl Report {
    /// Prints tables.
    pub fn print(&self, room: &str) {
        self.print_memory(room);
        self.print_step();
        self.print_run();
        self.print_checkpoints();
        if !self.fewest_gpus.is_empty() {
            print_fewest(&self.device, &self.fewest_gpus);
        }
        self.budget.advice(self.assumed.mtbf_hours).iter().for_each(table::say);
    }

    fn print_memory(&self, room: &str) {
        let MemoryReport { weights_bytes, moments_bytes, step_bytes, total_bytes, device_bytes, .. } = self.memory;
        let of = device_bytes.map_or("what there is".to_owned(), |bytes| HumanBytes(bytes).to_string());
        let title = match self.measured {
            true => self.device.clone(),
            false => format!("each of {} {} as a mesh of {}", self.gpus, self.device, self.mesh),
        };
        table::print(
            &title,
            &[
                ("weights of its shard", HumanBytes(weights_bytes).to_string()),
                ("moments of what it owns", HumanBytes(moments_bytes).to_string()),
                ("rows, lists, scratch of a step", HumanBytes(step_bytes).to_string()),
                ("altogether", HumanBytes(total_bytes).to_string()),
                ("of", format!("{of}: {room}")),
            ],
        );
    }

    fn print_step(&self) {
        let Some(floor) = &self.floor else { return };
        let parts = [
            ("encode", floor.encode_s),
            ("decode", floor.decode_s),
            ("backward", floor.backward_s),
            ("adam", floor.adam_s),
            ("exchange", floor.exchange_s),
            ("exchange meanwhile", floor.hidden_s),
        ];
        // Where nothing is hidden there is no such line.
        let shown = if floor.hidden_s > 0.0 { 6 } else { 5 };
        let parts = parts[..shown].iter().map(|(name, seconds)| (*name, format!("{:.2} ms", 1e3 * seconds)));
        table::print("a step, at the least", &parts.collect::<Vec<_>>());
    }

    fn print_run(&self) {
        let (row_bytes, rate) = (self.read_bytes as f64 / self.rows as f64, self.budget.tokens_per_s);
        let mut lines = vec![
            ("rows × width", format!("{} × {}", HumanCount(self.rows), self.width)),
            ("read from storage", HumanBytes(self.read_bytes).to_string()),
        ];
        if let (Some(floor), Some(efficiency)) = (&self.floor, self.efficiency) {
            lines.extend([
                ("sent by a rank in a step", HumanBytes(self.sent_bytes).to_string()),
                ("efficiency of the GPUs", format!("{:.0} %", 100.0 * efficiency)),
                ("tokens/s at the floor", HumanCount((self.batch as f64 / floor.total_s) as u64).to_string()),
            ]);
        }
        let rate_is = if self.measured { "tokens/s, measured here" } else { "tokens/s expected" };
        lines.extend([
            (rate_is, HumanCount(rate as u64).to_string()),
            ("which reads", format!("{:.2} GB/s", rate * row_bytes / 1e9)),
            ("bound by", self.bound_by.clone()),
        ]);
        lines.extend(self.budget.of_time());
        if !self.measured {
            lines.push(("GPU-hours", HumanCount(self.budget.device_hours.ceil() as u64).to_string()));
        }
        if let (Some(price), Some(cost)) = (self.budget.price, self.budget.cost) {
            lines.push(("cost", format!("{cost:.2} at {price} an hour of each")));
        }
        table::print("the run", &lines);
    }

    fn print_checkpoints(&self) {
        let saved = &self.budget.checkpoints;
        let memory = match self.assumed.host_memory_bytes {
            Some(bytes) => format!("{} of memory, ranks on it: {}", HumanBytes(bytes), self.assumed.host_ranks),
            None => "an unknown memory".to_owned(),
        };
        let waits = match saved.part_bytes.checked_sub(saved.buffer_bytes).filter(|&rest| rest > 0) {
            Some(rest) => format!("until about {} of a rank's part are stored", HumanBytes(rest)),
            None => "until it is copied to the host".to_owned(),
        };
        let mut lines = self.budget.of_storage();
        lines.extend([
            ("a rank's part", HumanBytes(saved.part_bytes).to_string()),
            ("a machine with", memory),
            ("spares of a rank's memory for it", HumanBytes(saved.buffer_bytes).to_string()),
            ("of which it takes, at most", HumanBytes(saved.host_bytes).to_string()),
            ("stored in", duration(saved.stored_s)),
            ("--save-s of a job", saved.save_s.to_string()),
            ("training waits", format!("{}, {waits}", duration(saved.waited_s))),
            ("checkpoint.every", budget::in_words(saved.every)),
            ("recommended", budget::in_words(saved.recommended_every)),
        ]);
        table::print("checkpoints", &lines);
    }
}

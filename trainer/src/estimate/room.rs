//! Whether a dictionary fits into memory, and what would.

use kernels::{Bytes, Device, Formats, Purpose, Shape};
use loader::memory;

use crate::Error;

/// A bound on the memory of one rank's dictionary.
#[derive(Debug)]
pub struct Room {
    /// Bytes that there are.
    bytes: u64,
    /// Whose they are.
    whose: String,
    /// Which bytes of a dictionary it bounds.
    counted: fn(Bytes) -> u64,
}

/// What of a dictionary's size would fit where all does not, with the other keys as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smaller {
    /// The most `sae.features`, of this rank.
    pub features: Option<usize>,
    /// The largest `train.batch`.
    pub batch: Option<usize>,
}

impl Room {
    /// The bounds of a device whose host runs so many ranks. Of the processor's memory only what surely cannot be had counts: weights and
    /// moments, which are all written, against what the machine has with its swap; and whatever is asked for at the start against the
    /// addresses that `ulimit -v` leaves.
    pub fn of(device: &impl Device, host_ranks: usize) -> Vec<Room> {
        if let Some(bytes) = device.room() {
            let whose = format!("the memory of {}", device.describe());
            return vec![Room { bytes, whose, counted: Bytes::total }];
        }
        let whose = match host_ranks {
            0 | 1 => "the memory of this machine".to_owned(),
            ranks => format!("the memory of this machine, which {ranks} ranks share"),
        };
        let shared = |bytes| Room { bytes: bytes / host_ranks.max(1) as u64, whose, counted: |bytes| bytes.weights };
        let own = |bytes| Room {
            bytes,
            whose: "what ulimit -v leaves this process".to_owned(),
            counted: |bytes| bytes.weights.saturating_add(bytes.step),
        };
        memory::obtainable().map(shared).into_iter().chain(memory::addresses().map(own)).collect()
    }

    /// The bounds of dictionaries that are trained together. Of the processor's memory all that they take counts then, against what is
    /// available: one that surely has room is better than several that swap.
    pub fn of_several(device: &impl Device, host_ranks: usize) -> Vec<Room> {
        let mut rooms = Room::of(device, host_ranks);
        if device.room().is_none() {
            rooms.extend(memory::available().map(|bytes| Room::given(bytes / host_ranks.max(1) as u64)));
        }
        rooms
    }

    /// So many bytes of a machine for all that a dictionary takes.
    pub fn given(bytes: u64) -> Room {
        Room { bytes, whose: "the memory of this machine".to_owned(), counted: Bytes::total }
    }

    /// Refuses a dictionary of `shape` to be trained, and where it `settles` a second one that is evaluated, that do not fit.
    ///
    /// # Errors
    /// [`Error::Recipe`] with what would fit.
    pub fn check(&self, device: &impl Device, shape: Shape, settles: bool) -> Result<(), Error> {
        let needed = self.needed(device, shape, settles);
        if needed <= self.bytes {
            return Ok(());
        }
        let remedy = match self.smaller(device, shape, settles) {
            Smaller { features: None, batch: None } => {
                "neither fewer sae.features nor a smaller train.batch alone would fit: lower both".to_owned()
            }
            Smaller { features: Some(features), batch: None } => {
                format!("sae.features = {features} would fit; a smaller train.batch alone would not")
            }
            Smaller { features: None, batch: Some(batch) } => {
                format!("train.batch = {batch} would fit; fewer sae.features alone would not")
            }
            Smaller { features: Some(features), batch: Some(batch) } => {
                format!("sae.features = {features} would fit, and so would train.batch = {batch}")
            }
        };
        let lighter = self
            .lighter(device, shape, settles)
            .map_or(String::new(), |formats| format!("; {} would fit", keys(formats)));
        Err(Error::Recipe(format!(
            "the dictionary does not fit into {}: a rank needs {}, and {} are free: {remedy}{lighter}",
            self.whose,
            size(needed),
            size(self.bytes)
        )))
    }

    /// Whether they fit.
    pub fn fits(&self, device: &impl Device, shape: Shape, settles: bool) -> bool {
        self.needed(device, shape, settles) <= self.bytes
    }

    /// How many of these dictionaries, the first ones, fit together, each with whether it settles.
    pub fn how_many(&self, device: &impl Device, shapes: &[(Shape, bool)]) -> usize {
        let mut left = self.bytes;
        let mut fits = |&(shape, settles): &(Shape, bool)| match left.checked_sub(self.needed(device, shape, settles)) {
            Some(less) => {
                left = less;
                true
            }
            None => false,
        };
        shapes.iter().take_while(|&shape| fits(shape)).count()
    }

    /// What would fit.
    pub fn smaller(&self, device: &impl Device, shape: Shape, settles: bool) -> Smaller {
        let fits = |features, batch| self.fits(device, Shape { features, batch, ..shape }, settles);
        let batch = |batch| fits(shape.features, batch);
        Smaller {
            features: largest(shape.features, 128, |features| fits(features, shape.batch)),
            // Measuring takes its time with many features, and weights do not depend on the batch.
            batch: if batch(64) { largest(shape.batch, 64, batch) } else { None },
        }
    }

    fn needed(&self, device: &impl Device, shape: Shape, settles: bool) -> u64 {
        let counted = |purpose| (self.counted)(device.bytes(shape, purpose));
        counted(Purpose::Training).saturating_add(if settles { counted(Purpose::Evaluation) } else { 0 })
    }

    /// The formats with which it fits as large as it is.
    fn lighter(&self, device: &impl Device, shape: Shape, settles: bool) -> Option<Formats> {
        let second = |formats: Formats| {
            if !settles {
                return 0;
            }
            let lighter = device.lighter(shape, Purpose::Evaluation).into_iter().find(|(other, _)| *other == formats);
            (self.counted)(lighter.map_or_else(|| device.bytes(shape, Purpose::Evaluation), |(_, bytes)| bytes))
        };
        let fits =
            |&(formats, bytes): &(Formats, Bytes)| (self.counted)(bytes).saturating_add(second(formats)) <= self.bytes;
        device.lighter(shape, Purpose::Training).into_iter().find(fits).map(|(formats, _)| formats)
    }
}

/// The keys that ask for formats.
fn keys(Formats { weights, moments }: Formats) -> String {
    let keys = [("train.precision", weights), ("train.moments", moments)];
    let asked = keys.into_iter().filter_map(|(key, format)| Some(format!("{key} = \"{}\"", format?)));
    asked.collect::<Vec<_>>().join(" with ")
}

/// The largest multiple of `unit` below `limit` that fits, by bisection.
fn largest(limit: usize, unit: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, limit / unit);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle * unit) { low = middle } else { high = middle - 1 }
    }
    (low > 0).then_some(low * unit)
}

/// Bytes as a person says them.
fn size(bytes: u64) -> String {
    match bytes >> 30 {
        0 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use kernels::cpu::Cpu;

    use super::*;

    /// Against the sum of W_enc, W_dec, both biases and two moments of each, in f32.
    #[test]
    fn as_many_features_fit_as_a_sum_says() {
        let device = Cpu::new(Some(1)).expect("threads");
        let shape = Shape { width: 64, features: 1 << 20, batch: 256, dense_bytes: 1 << 20 };
        let each = 12 * (2 * 64 + 1);
        let room = |bytes| Room { bytes, whose: "a test".to_owned(), counted: |bytes| bytes.weights };
        let least = each * shape.features as u64;
        assert!(room(least).check(&device, shape, false).is_err(), "the clocks and b_dec need room too");
        // What the encoder's screen keeps of a row besides depends on the processor: a tenth with bf16.
        assert!(room(least + least / 5).check(&device, shape, false).is_ok());
        let half = room(least / 2);
        let Smaller { features, batch } = half.smaller(&device, shape, false);
        let features = features.expect("some fit");
        assert!((0.8..1.0).contains(&(features as f64 / f64::from(1 << 19))), "{features}");
        assert_eq!(batch, None, "weights do not depend on the batch");
        let told = half.check(&device, shape, false).expect_err("it does not fit").to_string();
        assert!(told.contains(&format!("sae.features = {features} would fit; a smaller train.batch")), "{told}");
        assert!(half.fits(&device, Shape { features, ..shape }, false));
        assert!(!half.fits(&device, Shape { features: features + 128, ..shape }, false));
    }

    #[test]
    fn formats_are_asked_for_by_keys() {
        let (weights, moments) = (Some("bf16-sr"), Some("int8"));
        assert_eq!(keys(Formats { weights: None, moments }), "train.moments = \"int8\"");
        let both = "train.precision = \"bf16-sr\" with train.moments = \"int8\"";
        assert_eq!(keys(Formats { weights, moments }), both);
    }

    #[test]
    fn sizes_are_said_in_their_unit() {
        assert_eq!([5 << 20, 3 << 29].map(size), ["5 MiB", "1.50 GiB"]);
    }
}

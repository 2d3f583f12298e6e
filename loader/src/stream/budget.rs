//! How many bytes of rows a stream may hold: what its order needs, and what is read ahead.

use crate::make::layout::ROW_GROUP_BYTES;
use crate::stream::order::{Order, RowOrder, STREAMS};
use crate::{Dataset, Error, Result, RowGroup, memory};

/// Bytes read ahead by default: hides the latency of a remote store at 1 GB/s and 200 ms, and the pauses of a disk.
const AHEAD: u64 = 256 << 20;

/// Bytes of a unit of reading.
pub(crate) fn unit_bytes(order: &RowOrder) -> u64 {
    if order.window_bytes() >= 16 << 20 { 8 << 20 } else { 4 << 20 }
}

/// The bytes that may be held for so many streams: what was asked for, or what the order needs and some ahead.
pub(crate) fn budget(dataset: &Dataset, order: &RowOrder, streams: u64, asked: u64) -> Result<u64> {
    budget_within(dataset, order, streams, asked, memory::available())
}

/// The same where so much memory is available. What the order needs is refused when it is more than was asked for or, if
/// nothing was, more than half of that: weights, moments and the page cache need the rest.
fn budget_within(dataset: &Dataset, order: &RowOrder, streams: u64, asked: u64, available: Option<u64>) -> Result<u64> {
    let raw = dataset.shards().iter().all(|s| s.raw || s.rows == 0);
    let group = |g: &RowGroup| (g.rows * dataset.row_bytes() as u64).max(g.length);
    let whole = |g: &RowGroup| if raw && g.pieces.len() > 1 { 2 * unit_bytes(order) } else { group(g) };
    let groups = dataset.shards().iter().flat_map(|s| &s.row_groups);
    let largest = groups.clone().map(whole).max().unwrap_or(0);
    let all: u64 = groups.map(group).sum();
    let window = if order.is_permuted() { order.window_bytes() } else { 0 };
    let needed = (streams * (window + largest)).min(all);
    let (limit, but) = match (asked, available) {
        (0, None) => (u64::MAX, String::new()),
        (0, Some(there)) => {
            (there / 2, format!("more than half of the {} that this machine has available", size(there)))
        }
        (asked, _) => (asked, format!("{} are allowed", size(asked))),
    };
    if needed > limit {
        let problem = format!(
            "the order needs {} in memory ({streams} windows of {} and a unit of reading of {} for each), {but}",
            size(needed),
            size(window),
            size(largest),
        );
        return Err(Error::Memory { problem, needed });
    }
    Ok(if asked == 0 { needed + AHEAD } else { asked })
}

/// The same of shards of so many bytes that [`crate::ShardWriter`] has yet to write in its recommended layout, at most.
pub(crate) fn budget_of_unwritten(bytes: u64, order: Order, asked: u64) -> u64 {
    let (streams, windows) = match order {
        Order::Sequential => (1, 0),
        Order::Striped => (STREAMS, 0),
        Order::Direct { window_bytes } => (STREAMS, window_bytes),
    };
    let needed = windows.saturating_add(streams * ROW_GROUP_BYTES as u64).min(bytes);
    if asked == 0 { needed + AHEAD } else { asked }
}

/// Bytes in the largest unit that does not round them to nothing.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Help, OpenOptions, ShardWriter, Store, WriteOptions};

    #[test]
    fn what_the_memory_cannot_hold_is_refused_unless_it_was_asked_for() {
        let url = "memory://budget/one";
        let mut options = WriteOptions::new(512, Dtype::F16);
        // One piece each, so that a row group is read as a whole.
        options.row_group_bytes = 1 << 20;
        let mut writer = ShardWriter::create(&Store::open(url).unwrap(), options).unwrap();
        (0..8).for_each(|_| writer.write(&vec![0; 1 << 20], &[]).unwrap());
        writer.finish().unwrap();
        let dataset = Dataset::open(&[url.to_string()], &OpenOptions::default()).unwrap();
        let order = Order::Direct { window_bytes: 1 << 20 };
        let order = RowOrder::new(dataset.as_opened(), order, 0, 0, 64, None).unwrap();
        let within = |asked, available| budget_within(&dataset, &order, 64, asked, available);
        let needed: u64 = dataset.shards()[0].row_groups.iter().map(|g| g.length).sum();
        assert_eq!(within(0, None).unwrap(), needed + AHEAD, "no word of the system, no cap");
        assert_eq!(within(0, Some(2 * needed)).unwrap(), needed + AHEAD);
        let error = within(0, Some(2 * needed - 2)).unwrap_err();
        assert_eq!(error.help(), Some(Help::Prefetch(needed)));
        for says in ["needs 8.0 MiB", "half of the 16.0 MiB"] {
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
        assert_eq!(within(needed, Some(1)).unwrap(), needed, "who asks for it gets it");
        assert!(within(needed - 1, None).unwrap_err().to_string().contains("8.0 MiB are allowed"));
    }
}

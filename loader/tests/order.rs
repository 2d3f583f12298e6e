//! The order: every row exactly once, whatever the partition, threads or prefetch depth; resumable anywhere.
#![allow(clippy::unwrap_used)]

mod common;

use common::{drain, ids, memory, open, write};
use loader::{Cursor, Dtype, Error, Order, Plan, Stream, StreamOptions};
use proptest::prelude::*;

const ROW: u64 = 16;

fn options(order: Order, batch: usize) -> StreamOptions {
    StreamOptions { order, batch, seed: 7, ..StreamOptions::default() }
}

fn orders() -> [Order; 4] {
    let direct = |window_rows: u64| Order::Direct { window_bytes: 64 * window_rows * ROW };
    [direct(1 << 20), direct(13), Order::Sequential, Order::Striped]
}

#[test]
fn every_row_once_in_every_order_and_size() {
    for rows in [1, 63, 10_007] {
        let url = memory();
        write(&url, rows, 4001, 8, Dtype::F16);
        let dataset = open(&url);
        for order in orders() {
            let batches = drain(&dataset, &options(order, 64), Cursor::default());
            let mut seen = ids(&batches);
            assert_eq!(batches.len() as u64, rows.div_ceil(64));
            assert_eq!(
                batches.last().unwrap().0.rows as u64,
                (rows - 1) % 64 + 1,
                "the last batch is short, not padded"
            );
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..rows), "{order:?} of {rows} rows");
        }
    }
}

#[test]
fn sequential_is_storage_order_and_direct_is_not() {
    let url = memory();
    write(&url, 3000, 1100, 8, Dtype::F16);
    let dataset = open(&url);
    assert!(ids(&drain(&dataset, &options(Order::Sequential, 256), Cursor::default())).into_iter().eq(0..3000));
    let direct = |seed, epoch| {
        let options = StreamOptions { seed, epoch, ..options(orders()[0], 256) };
        ids(&drain(&dataset, &options, Cursor::default()))
    };
    assert_eq!(direct(1, 0), direct(1, 0));
    assert_ne!(direct(1, 0), direct(2, 0));
    assert_ne!(direct(1, 0), direct(1, 1));
}

#[test]
fn partitions_threads_and_prefetch_change_nothing() {
    let url = memory();
    write(&url, 10_007, 4001, 8, Dtype::F16);
    let dataset = open(&url);
    for order in orders() {
        let whole = drain(&dataset, &options(order, 1000), Cursor::default());
        for count in [2u64, 3, 4, 7, 8, 100] {
            let parts: Vec<_> = (0..count)
                .map(|i| {
                    let mut o = options(order, 1000);
                    o.partition = (i, count);
                    o.threads = 1 + i as usize % 3;
                    o.prefetch_bytes = if i % 2 == 0 { 0 } else { 1 << 20 };
                    drain(&dataset, &o, Cursor::default())
                })
                .collect();
            for (step, (batch, expected)) in whole.iter().enumerate() {
                let joined: Vec<u64> = parts.iter().flat_map(|p| p[step].1.iter().copied()).collect();
                assert_eq!(&joined, expected, "{order:?}, {count} ranks, step {step}");
                assert_eq!(batch.first_position, step as u64 * 1000);
            }
        }
    }
}

#[test]
fn a_cursor_continues_exactly() {
    let url = memory();
    write(&url, 5003, 2000, 8, Dtype::F16);
    let dataset = open(&url);
    for order in orders() {
        let options = options(order, 100);
        let whole = drain(&dataset, &options, Cursor::default());
        for cut in [1, 7, 25, 49, 50, 51] {
            let mut stream = Stream::start(&dataset, options.clone(), Cursor::default()).unwrap();
            let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
            (0..cut).for_each(|_| drop(stream.next(&mut buffer).unwrap()));
            let saved = serde_json::to_string(&stream.cursor()).unwrap();
            assert!(saved.len() <= 1024, "{saved}");
            let rest = drain(&dataset, &options, serde_json::from_str(&saved).unwrap());
            assert_eq!(ids(&rest), ids(&whole[cut..]), "{order:?} cut at {cut}");
        }
    }
}

#[test]
fn a_cursor_of_another_order_is_refused_by_name() {
    let url = memory();
    write(&url, 1000, 1000, 8, Dtype::F16);
    let dataset = open(&url);
    let cursor = Stream::start(&dataset, options(Order::Sequential, 100), Cursor::default()).unwrap().cursor();
    let refused = |o: StreamOptions| Stream::start(&dataset, o, cursor.clone()).unwrap_err();
    let error = refused(StreamOptions { seed: 8, ..options(Order::Sequential, 50) });
    assert!(matches!(error, Error::Cursor { .. }) && error.exit_code() == 64);
    assert_eq!(error.to_string(), "cannot resume here: seed was 7 and is now 8; batch was 100 and is now 50");
    let other = memory();
    write(&other, 1001, 1000, 8, Dtype::F16);
    let error = Stream::start(&open(&other), options(Order::Sequential, 100), cursor).unwrap_err().to_string();
    assert!(error.contains("data (manifest identity) was ") && error.contains("rows in the epoch was 1000"), "{error}");
}

#[test]
fn a_resume_reads_no_more_than_a_window_again() {
    let url = memory();
    write(&url, 320_000, 100_000, 8, Dtype::F16);
    let dataset = open(&url);
    let options = options(Order::Direct { window_bytes: 64 * 100 * ROW }, 4000);
    let mut whole = Stream::start(&dataset, options.clone(), Cursor::default()).unwrap();
    let mut buffer = vec![0; whole.max_rows() * dataset.row_bytes()];
    for _ in 0..79 {
        whole.next(&mut buffer).unwrap();
    }
    let cursor = whole.cursor();
    whole.next(&mut buffer).unwrap();
    let mut resumed = Stream::start(&dataset, options, cursor).unwrap();
    resumed.next(&mut buffer).unwrap();
    // One step before the end: each of 64 streams needs its last window, rounded to row groups of 500 rows of its 5000.
    assert!(resumed.bytes_read() < whole.bytes_read() / 4, "{} of {}", resumed.bytes_read(), whole.bytes_read());
}

#[test]
fn a_limit_takes_the_first_rows_of_the_sequence() {
    let url = memory();
    write(&url, 5000, 2000, 8, Dtype::F16);
    let dataset = open(&url);
    for order in orders() {
        let limited = StreamOptions { limit: Some(1234), ..options(order, 100) };
        let mut seen = ids(&drain(&dataset, &limited, Cursor::default()));
        assert_eq!(seen.len(), 1234);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1234);
    }
}

#[test]
fn memory_stays_under_the_bound() {
    let url = memory();
    write(&url, 60_000, 20_000, 64, Dtype::F16);
    let dataset = open(&url);
    let budget = 3 << 20;
    let o = StreamOptions { prefetch_bytes: budget, ..options(Order::Direct { window_bytes: 1 << 20 }, 512) };
    let mut stream = Stream::start(&dataset, o, Cursor::default()).unwrap_err().to_string();
    // Groups of 64 kB, 64 streams: windows of 16 kB and a group each do not fit into 3 MiB.
    assert!(stream.contains("raise data.prefetch_bytes") && stream.contains("windows of 16.0 KiB"), "{stream}");
    stream.clear();
    let o = StreamOptions { prefetch_bytes: 16 << 20, ..options(Order::Direct { window_bytes: 1 << 20 }, 512) };
    let mut stream = Stream::start(&dataset, o, Cursor::default()).unwrap();
    let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
    while stream.next(&mut buffer).unwrap().is_some() {
        assert!(stream.bytes_held() <= 16 << 20);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// The rule alone, without data: positions map to rows one to one.
    #[test]
    fn the_order_is_a_bijection(
        groups in prop::collection::vec(0u64..300, 1..20),
        batch in 1usize..700,
        window_rows in 1u64..500,
        seed in any::<u64>(),
        kind in 0usize..3,
        limit in prop::option::of(1u64..4000),
    ) {
        let row_groups = groups.iter().map(|&rows| loader::RowGroup { rows, offset: 4, length: rows * ROW, pieces: vec![] });
        let rows: u64 = groups.iter().sum();
        let size = 4 + 300 * ROW * 20;
        let shard = loader::Shard { path: "a.parquet".into(), size, etag: None, rows, raw: true, row_groups: row_groups.collect() };
        let manifest = loader::Manifest::new(8, Dtype::F16, false, false, vec![shard]);
        let order = [Order::Direct { window_bytes: 64 * window_rows * ROW }, Order::Sequential, Order::Striped][kind];
        let plan = Plan::new(&manifest, order, seed, 0, batch, limit).unwrap();
        let mut seen = Vec::new();
        for step in 0..plan.steps() {
            for slot in 0..plan.batch_rows(step) {
                seen.push(plan.row_at(step, slot));
            }
        }
        let n = seen.len() as u64;
        prop_assert_eq!(n, limit.map_or(rows, |l| l.min(rows)));
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len() as u64, n);
    }
}

//! The order: every row exactly once, whatever the partition, threads or prefetch depth; resumable anywhere.
#![allow(clippy::unwrap_used)]

mod common;

use common::{drain, ids, memory, open, write};
use loader::{
    Cells, ColumnType, Cursor, Dtype, Error, ExtraColumn, InSequence, Manifest, Order, Partition, RowFilter, RowGroup,
    RowId, RowOrder, Scalar, Shard, ShardWriter, SkipList, Store, Stream, StreamOptions, TableColumn, TableWriter,
    Wanted, WriteOptions,
};
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

/// In the order of their shards rows come once, with their number and their columns, less those that a list or a filter leaves out; and a
/// table of them holds what was written.
#[test]
fn rows_in_sequence_come_with_their_columns() {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float64Type, Int32Type, UInt64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    const ROWS: usize = 250;
    let url = memory();
    let store = Store::open(&url).unwrap();
    let more =
        [("weight", ColumnType::F64), ("text", ColumnType::Text)].map(|(name, kind)| ExtraColumn::new(name, kind));
    let columns = [ExtraColumn::tokens(), more.to_vec()].concat();
    let (shard_rows, row_group_bytes, page_bytes) = (100, 320, 64);
    let layout = WriteOptions { columns, shard_rows, row_group_bytes, page_bytes, ..WriteOptions::new(4, Dtype::F32) };
    let mut writer = ShardWriter::create(&store, layout).unwrap();
    let values: Vec<f32> = (0..ROWS * 4).map(|i| i as f32).collect();
    let mut rows = vec![0; ROWS * 16];
    Dtype::F32.from_f32(&values, &mut rows);
    let token_id: Vec<i32> = (0..ROWS as i32).map(|row| 1000 + row).collect();
    let (doc_id, pos): (Vec<i32>, Vec<i32>) = (0..ROWS as i32).map(|row| (row / 7, row % 7)).unzip();
    let weight: Vec<f64> = (0..ROWS).map(|row| row as f64 / 4.0).collect();
    let text: Vec<String> = (0..ROWS).map(|row| format!("word {}", row % 3)).collect();
    let given = [(&token_id).into(), (&doc_id).into(), (&pos).into(), (&weight).into(), (&text).into()];
    writer.write(&rows, &given).unwrap();
    writer.finish().unwrap();

    let dataset = open(&url);
    let scalars = dataset.scalars().unwrap();
    let names: Vec<&str> = scalars.columns.iter().map(Scalar::name).collect();
    assert_eq!(names, ["doc_id", "pos", "text", "token_id", "weight"]);
    assert!(scalars.left_out.is_empty(), "{:?}", scalars.left_out);
    let mut skip = SkipList::default();
    skip.add_row(RowId { shard: 1, row: 5 });
    skip.add_row_group(0, 0);
    let filter = RowFilter { positions: vec![0], ..RowFilter::default() };
    let groups = dataset.row_groups();
    let in_group = groups[0].rows.end;
    assert!(groups.len() > 10 && groups.last().is_some_and(|last| last.rows.end == ROWS as u64));
    let wanted = |row: u64| row >= in_group && row != 105 && !row.is_multiple_of(7);

    let of = [TableColumn::u64("row")]
        .into_iter()
        .chain(scalars.columns.iter().map(TableColumn::scalar))
        .collect::<Vec<_>>();
    let mut table = TableWriter::create(&store, "a.parquet", &of, &[]).unwrap();
    let mut held: Vec<u64> = Vec::new();
    let mut reader =
        InSequence::start(&dataset, groups, Wanted { skip, filter, scalars: scalars.columns.clone() }).unwrap();
    let (mut skipped, mut filtered) = (0, 0);
    while let Some(piece) = reader.read().unwrap() {
        (skipped, filtered) = (skipped + piece.skipped, filtered + piece.filtered);
        for (kept, &number) in piece.numbers.iter().enumerate() {
            assert_eq!(piece.row(kept), &rows[number as usize * 16..][..16]);
            assert_eq!(dataset.row_of(number), Some(RowId { shard: (number / 100) as u32, row: number % 100 }));
        }
        held.extend(&piece.numbers);
        let cells = [Cells::U64(&piece.numbers)].into_iter().chain(piece.scalars.iter().map(Cells::Scalar));
        table.write(&cells.collect::<Vec<_>>()).unwrap();
    }
    assert!(held.iter().copied().eq((0..ROWS as u64).filter(|&row| wanted(row))));
    assert_eq!(skipped, in_group + 1);
    assert_eq!(held.len() as u64 + skipped + filtered, ROWS as u64);
    table.finish().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(store.get("a.parquet").unwrap()).unwrap();
    let batches: Vec<_> = reader.with_batch_size(ROWS).build().unwrap().map(Result::unwrap).collect();
    let batch = &batches[0];
    assert_eq!((batches.len(), batch.num_rows()), (1, held.len()));
    let by_name = |name: &str| batch.column_by_name(name).unwrap();
    for (i, &number) in held.iter().enumerate() {
        let row = number as usize;
        assert_eq!(by_name("row").as_primitive::<UInt64Type>().value(i), number);
        assert_eq!(by_name("token_id").as_primitive::<Int32Type>().value(i), token_id[row]);
        assert_eq!(by_name("weight").as_primitive::<Float64Type>().value(i), weight[row]);
        assert_eq!(by_name("text").as_string::<i32>().value(i), text[row]);
    }
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
                    o.partition = Partition { index: i, count };
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
    assert!(matches!(error, Error::Cursor { .. }));
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

/// What is read does not change the order: runs of different lengths have the same rows at the same steps.
#[test]
fn a_stream_that_ends_early_delivers_the_same_rows_and_reads_none_behind_them() {
    let url = memory();
    write(&url, 50_000, 5000, 8, Dtype::F16);
    let dataset = open(&url);
    for order in orders() {
        let options = StreamOptions { prefetch_bytes: 1 << 20, ..options(order, 100) };
        let all = ids(&drain(&dataset, &options, Cursor::default()));
        for until in [0, 1, 37, 500, 1000] {
            let ended = StreamOptions { until: Some(until), ..options.clone() };
            let seen = ids(&drain(&dataset, &ended, Cursor::default()));
            assert_eq!(seen, all[..(100 * until as usize).min(all.len())], "{order:?} until {until}");
        }
        let ended = StreamOptions { until: Some(10), ..options.clone() };
        let mut stream = Stream::start(&dataset, ended, Cursor { step: 5, ..Cursor::default() }).unwrap();
        let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
        assert_eq!(stream.steps(), 10);
        let mut steps = 0;
        while stream.next(&mut buffer).unwrap().is_some() {
            steps += 1;
        }
        assert_eq!(steps, 5, "{order:?}");
        if order == Order::Sequential {
            // Of 800 KB, all of which there would be room to read ahead.
            assert!(stream.bytes_read() < 50_000 * 16 / 4, "{} bytes", stream.bytes_read());
        }
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
    assert!(stream.contains("windows of 16.0 KiB"), "{stream}");
    stream.clear();
    let o = StreamOptions { prefetch_bytes: 16 << 20, ..options(Order::Direct { window_bytes: 1 << 20 }, 512) };
    let mut stream = Stream::start(&dataset, o, Cursor::default()).unwrap();
    let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
    while stream.next(&mut buffer).unwrap().is_some() {
        assert!(stream.bytes_held() <= 16 << 20);
    }
}

/// Shards with row groups of these rows.
fn manifest(shards: &[&[u64]]) -> Manifest {
    let shard = |(i, groups): (usize, &&[u64])| Shard {
        path: format!("{i}.parquet"),
        size: 4 + ROW * groups.iter().sum::<u64>(),
        etag: None,
        rows: groups.iter().sum(),
        raw: true,
        row_groups: groups
            .iter()
            .map(|&rows| RowGroup { rows, offset: 4, length: rows * ROW, pieces: vec![] })
            .collect(),
    };
    Manifest::new(8, Dtype::F16, false, false, shards.iter().enumerate().map(shard).collect())
}

/// Every row of an epoch in the order in which it is delivered.
fn delivered(row_order: &RowOrder) -> Vec<RowId> {
    (0..row_order.steps())
        .flat_map(|step| (0..row_order.batch_rows(step)).map(move |slot| row_order.row_at(step, slot)))
        .collect()
}

/// A batch, a limit, and the row groups of each shard.
type Shape = (usize, Option<u64>, &'static [&'static [u64]]);

/// Some that divide by 64 streams, some that do not, batches of fewer rows than streams, a tail of one
/// row, a single short batch.
const SHAPES: [Shape; 7] = [
    (64, None, &[&[640]]),
    (256, None, &[&[1000, 24], &[1, 0, 3071]]),
    (1000, None, &[&[500, 500, 500, 500, 500], &[500, 500, 500, 500, 500, 3]]),
    (7, None, &[&[100, 31], &[70]]),
    (65, Some(1301), &[&[900, 900]]),
    (100, Some(1234), &[&[1000], &[1000], &[1000]]),
    (4096, None, &[&[63, 64, 65]]),
];

/// Checkpoints hold positions in the order, so it must never change under the same version: hashes of whole epochs.
#[test]
fn the_order_of_this_version_is_pinned() {
    let orders = [
        Order::Direct { window_bytes: 1 << 30 },
        Order::Direct { window_bytes: 64 * 5 * ROW },
        Order::Sequential,
        Order::Striped,
    ];
    let hash = |order, (batch, limit, shards): Shape| {
        let row_order = RowOrder::new(&manifest(shards), order, 7, 0, batch, limit).unwrap();
        let bytes: Vec<u8> = delivered(&row_order)
            .iter()
            .flat_map(|id| [id.shard.to_le_bytes().as_slice(), &id.row.to_le_bytes()].concat())
            .collect();
        xxhash_rust::xxh3::xxh3_64(&bytes)
    };
    let found: Vec<[u64; 4]> = SHAPES.iter().map(|shape| orders.map(|order| hash(order, *shape))).collect();
    assert_eq!(found, PINNED, "{found:#018x?}");
    // Seed and epoch are part of it.
    let keyed =
        |seed, epoch| delivered(&RowOrder::new(&manifest(SHAPES[1].2), orders[1], seed, epoch, 256, None).unwrap());
    assert!(keyed(7, 0) != keyed(8, 0) && keyed(7, 0) != keyed(7, 1) && keyed(8, 0) != keyed(7, 1));
}

/// For each shape: direct in one window, direct in windows of 5 rows, sequential, striped.
const PINNED: [[u64; 4]; 7] = [
    [0x3c8c_391e_1312_5a5a, 0x1238_178e_b5b9_f256, 0x6c60_ebfd_16c1_6fe2, 0xb23c_1963_074f_b480],
    [0xc6c3_b3f6_53eb_367b, 0x8ba1_8741_b52d_e73d, 0x39f8_a2e4_3570_d189, 0x9105_54f0_96d1_987b],
    [0xe4a7_b42d_6c9c_41d8, 0x4134_3847_6ac6_9c37, 0x71a9_9ec6_8ac2_6bc0, 0x742c_9094_80b5_e2c5],
    [0xf071_de55_75de_65d4, 0x61ee_94a0_75bb_e0fa, 0xec8d_d76f_c5f3_df27, 0x0f62_e6bf_65ca_ca53],
    [0x7917_fce2_caaa_c698, 0xd316_829a_7d19_c5f8, 0x6d25_e79c_c9a5_3bdd, 0xde59_48f8_3a41_d361],
    [0xcb2e_008b_8ca5_fe9d, 0x91f7_6d67_1f92_c46b, 0x9e09_0b65_9a1f_7452, 0xbff4_3c61_278d_2d44],
    [0x3a43_7047_dee1_e09d, 0x3a43_7047_dee1_e09d, 0xa4a9_dbfc_8ea8_ee87, 0xa4a9_dbfc_8ea8_ee87],
];

/// The rule of `order.rs` for rows in storage order, as a person would carry it out: each stream is dealt its rows, and every slot
/// takes the next row of its stream.
#[test]
fn streams_are_dealt_as_the_rule_says() {
    for (batch, limit, shards) in SHAPES {
        let manifest = manifest(shards);
        let stored: Vec<RowId> = (0u32..)
            .zip(shards)
            .flat_map(|(shard, groups)| (0..groups.iter().sum()).map(move |row| RowId { shard, row }))
            .take(limit.unwrap_or(u64::MAX) as usize)
            .collect();
        for (order, streams) in [(Order::Sequential, 1), (Order::Striped, 64)] {
            let row_order = RowOrder::new(&manifest, order, 7, 0, batch, limit).unwrap();
            assert_eq!(
                (row_order.rows(), row_order.steps()),
                (stored.len() as u64, stored.len().div_ceil(batch) as u64)
            );
            let slots: Vec<usize> =
                stored.chunks(batch).flat_map(|rows| (0..rows.len()).map(|slot| slot * streams / rows.len())).collect();
            let mut dealt: Vec<_> = (0..streams)
                .scan(0, |at, stream| {
                    let from = *at;
                    *at += slots.iter().filter(|of| **of == stream).count();
                    Some(stored[from..*at].iter())
                })
                .collect();
            let expected: Vec<RowId> = slots.iter().filter_map(|&stream| dealt[stream].next().copied()).collect();
            assert_eq!(delivered(&row_order), expected, "{order:?}, batches of {batch}");
            // Ranks take contiguous slots, more of them than streams too.
            for ranks in [1, 3, 64, 100] {
                for step in 0..row_order.steps() {
                    let parts: Vec<u64> = (0..ranks)
                        .flat_map(|rank| row_order.slots(step, Partition { index: rank, count: ranks }))
                        .collect();
                    assert!(parts.into_iter().eq(0..row_order.batch_rows(step)));
                }
            }
        }
    }
}

/// With a skip list and a filter the order is the same without the rows that they leave out, also to more ranks than streams.
#[test]
fn what_is_left_out_moves_nothing() {
    let url = memory();
    write(&url, 5003, 2000, 8, Dtype::F16);
    let dataset = open(&url);
    for order in orders() {
        let plain = options(order, 1000);
        let whole = ids(&drain(&dataset, &plain, Cursor::default()));
        let mut skipping = plain.clone();
        let rows = [(0, 0), (0, 499), (0, 500), (0, 1999), (1, 0), (2, 1002)];
        rows.iter().for_each(|&(shard, row)| skipping.skip.add_row(RowId { shard, row }));
        skipping.skip.add_row_group(1, 2);
        let groups = &dataset.shards()[1].row_groups;
        let group = 2000 + groups[0].rows + groups[1].rows;
        let is_left_out = |row: &u64| {
            rows.iter().any(|(shard, of_shard)| u64::from(*shard) * 2000 + of_shard == *row)
                || (group..group + groups[2].rows).contains(row)
        };
        for (batch, ranks) in [(1000, 1), (1000, 3), (1000, 100), (70, 66)] {
            let whole = if batch == 1000 {
                whole.clone()
            } else {
                ids(&drain(&dataset, &options(order, batch), Cursor::default()))
            };
            let of_rank = |rank| {
                let options =
                    StreamOptions { partition: Partition { index: rank, count: ranks }, batch, ..skipping.clone() };
                drain(&dataset, &options, Cursor::default())
            };
            let parts: Vec<_> = (0..ranks).map(of_rank).collect();
            let joined: Vec<u64> =
                (0..parts[0].len()).flat_map(|step| parts.iter().flat_map(move |part| part[step].1.clone())).collect();
            let wanted: Vec<u64> = whole.into_iter().filter(|row| !is_left_out(row)).collect();
            assert!(joined == wanted, "{order:?}, {ranks} ranks, batches of {batch}");
        }
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
        let row_order = RowOrder::new(&manifest, order, seed, 0, batch, limit).unwrap();
        let mut seen = Vec::new();
        for step in 0..row_order.steps() {
            for slot in 0..row_order.batch_rows(step) {
                seen.push(row_order.row_at(step, slot));
            }
        }
        let n = seen.len() as u64;
        prop_assert_eq!(n, limit.map_or(rows, |l| l.min(rows)));
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len() as u64, n);
    }
}

//! Data of the size of real shards: row groups of several units and pieces, batches that several threads copy, footers and samples
//! beyond one read. Each constant of the loader is crossed by one, met exactly, and passed by far.
#![allow(clippy::unwrap_used)]

mod common;

use common::{drain, ids, memory, open, row};
use loader::synth::{self, Spec};
use loader::{
    Compression, Cursor, Dataset, Dtype, Error, ExtraColumn, InspectOptions, ManifestState, Order, RowFilter, RowId,
    ShardWriter, SkipList, Store, Stream, StreamOptions, WriteOptions, inspect, sample,
};

const WIDTH: usize = 2048;
const ROW: usize = 2 * WIDTH;
/// Rows of the first row group: 21 MiB in pages of 1 MiB, so seven pieces of three pages each.
const GROUP: u64 = 21 * 256;
/// The second row group is short, and its only page too.
const ROWS: u64 = GROUP + 300;
/// A row every so often has this position.
const UNWANTED: (u64, i32) = (761, 0);

/// The orders, of which `Direct` reads units of 8 MiB, two pieces each, and the others every piece by itself.
const ORDERS: [Order; 3] = [Order::Direct { window_bytes: 1 << 30 }, Order::Sequential, Order::Striped];

fn options(order: Order, batch: usize) -> StreamOptions {
    StreamOptions { order, batch, seed: 7, ..StreamOptions::default() }
}

/// A shard as they come from a pipeline: with columns beside the rows.
fn write(url: &str, compression: Compression, row: impl Fn(u64) -> Vec<u8>) -> Store {
    let store = Store::open(url).unwrap();
    let (page_bytes, row_group_bytes) = (1 << 20, GROUP as usize * ROW);
    let options = WriteOptions {
        page_bytes,
        row_group_bytes,
        columns: ExtraColumn::tokens(),
        compression,
        ..WriteOptions::new(WIDTH, Dtype::F16)
    };
    let mut writer = ShardWriter::create(&store, options).unwrap();
    for first in (0..ROWS).step_by(512) {
        let rows = first..(first + 512).min(ROWS);
        let pos: Vec<i32> = rows.clone().map(|i| (i % UNWANTED.0) as i32).collect();
        let bytes: Vec<u8> = rows.flat_map(&row).collect();
        writer.write(&bytes, &[(&pos).into(), (&pos).into(), (&pos).into()]).unwrap();
    }
    writer.finish().unwrap();
    store
}

fn plain(url: &str) -> Store {
    write(url, Compression::None, |i| row(i, ROW))
}

/// The rows that pieces of the first row group begin with.
fn piece_starts(dataset: &Dataset) -> Vec<u64> {
    let pieces = &dataset.shards()[0].row_groups[0].pieces;
    let starts = pieces.iter().scan(0, |at, piece| {
        *at += piece.rows;
        Some(*at - piece.rows)
    });
    starts.collect()
}

#[test]
fn skipped_and_filtered_rows_are_found_in_every_unit() {
    let folder = tempfile::tempdir().unwrap();
    for url in [memory(), folder.path().to_str().unwrap().to_string()] {
        plain(&url);
        let dataset = open(&url);
        let starts = piece_starts(&dataset);
        assert_eq!(starts, [0, 768, 1536, 2304, 3072, 3840, 4608]);
        // Beside rows at the same places of all pieces each has one at a place of its own: no piece is skipped like another.
        let of_piece = |(i, &at): (usize, &u64)| [at.saturating_sub(1), at, at + 1, at + 100 + 31 * i as u64];
        let mut skipped: Vec<u64> = starts.iter().enumerate().flat_map(of_piece).collect();
        skipped.extend([GROUP - 1, GROUP, GROUP + 1, ROWS - 1]);
        skipped.sort_unstable();
        skipped.dedup();
        let filter = RowFilter { positions: vec![UNWANTED.1], ..RowFilter::default() };
        let is_filtered = |row: &u64| row.is_multiple_of(UNWANTED.0) && !skipped.contains(row);
        let wanted: Vec<u64> = (0..ROWS).filter(|row| !skipped.contains(row) && !is_filtered(row)).collect();
        for order in ORDERS {
            let mut options = StreamOptions { filter: filter.clone(), ..options(order, 700) };
            skipped.iter().for_each(|&row| options.skip.add_row(RowId { shard: 0, row }));
            let batches = drain(&dataset, &options, Cursor::default());
            let mut seen = ids(&batches);
            seen.sort_unstable();
            assert_eq!(seen, wanted, "{order:?} in {url}");
            let left_out: (u64, u64) =
                batches.iter().fold((0, 0), |(s, f), (batch, _)| (s + batch.skipped, f + batch.filtered));
            assert_eq!(left_out, (skipped.len() as u64, (0..ROWS).filter(is_filtered).count() as u64));
        }
    }
}

/// Reads all rows in an order that takes its units of 8 MiB, or fails.
fn read(dataset: &Dataset, order: Order) -> Result<(), Error> {
    let mut stream = Stream::start(dataset, options(order, 512), Cursor::default())?;
    let mut buffer = vec![0; 512 * ROW];
    while stream.next(&mut buffer)?.is_some() {}
    Ok(())
}

/// Bytes that no codec makes smaller.
fn noise(i: u64) -> Vec<u8> {
    let word = |k: u64| {
        let z = (i << 20 | k).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16) as u32
    };
    // Finite as f16: the highest bit of the exponent is 0.
    (0..ROW as u64 / 4).flat_map(|k| (word(k) & 0xbfff_bfff).to_le_bytes()).collect()
}

#[test]
fn a_flipped_byte_is_noticed_in_every_piece() {
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("raw").to_str().unwrap().to_string();
    let stores = [
        (memory(), Compression::None),
        (local, Compression::None),
        // Pieces of a compressed chunk hold no whole rows: the row group is one unit of all of them.
        (memory(), Compression::Zstd),
    ];
    for (url, compression) in stores {
        let store = write(&url, compression, noise);
        let name = "shard-00000.parquet";
        let whole = store.get(name).unwrap().to_vec();
        let group = open(&url).shards()[0].row_groups[0].clone();
        assert!(group.pieces.len() >= 6, "{} pieces", group.pieces.len());
        let mut at = group.offset as usize;
        for (i, piece) in group.pieces.iter().enumerate() {
            // The first byte, the last, and one in the middle.
            let byte = at + [0, piece.bytes as usize / 2, piece.bytes as usize - 1][i % 3];
            at += piece.bytes as usize;
            let mut damaged = whole.clone();
            damaged[byte] ^= 4;
            store.put(name, damaged).unwrap();
            for order in ORDERS {
                let error = read(&open(&url), order).unwrap_err();
                assert!(matches!(error, Error::Data { .. }), "{error}");
                assert!(
                    error.to_string().contains("row group 0: damaged: the checksum differs"),
                    "{i} {order:?}: {error}"
                );
            }
            let found = inspect(std::slice::from_ref(&url), InspectOptions::default()).unwrap();
            assert_eq!(found.manifest, ManifestState::Mismatched, "piece {i} of {url}");
            assert!(found.mismatches.iter().all(|m| m.contains("row group 0")), "{:?}", found.mismatches);
        }
        store.put(name, whole).unwrap();
        let found = inspect(std::slice::from_ref(&url), InspectOptions::default()).unwrap();
        assert_eq!((found.manifest, found.rows), (ManifestState::Verified, ROWS));
        assert_eq!(found.verified_bytes, found.bytes, "every byte has a checksum");
    }
}

/// Without a manifest a row group is read as a whole, in several requests, and its checksums are recorded.
#[test]
fn what_was_read_without_a_manifest_is_the_same_when_it_is_read_again() {
    let url = memory();
    let store = plain(&url);
    let written = open(&url).manifest();
    store.delete("manifest.json").unwrap();
    let dataset = open(&url);
    assert!(ids(&drain(&dataset, &options(Order::Sequential, 512), Cursor::default())).into_iter().eq(0..ROWS));
    let pieces = |manifest: &loader::Manifest| -> Vec<_> {
        manifest.shards[0].row_groups.iter().map(|group| group.pieces.clone()).collect()
    };
    assert_eq!(pieces(&dataset.manifest()), pieces(&written), "as the writer cut and hashed them");
    let group = written.shards[0].row_groups[0].clone();
    let mut bytes = store.get("shard-00000.parquet").unwrap().to_vec();
    bytes[(group.offset + group.length) as usize - 1] ^= 1;
    store.put("shard-00000.parquet", bytes).unwrap();
    let error = read(&dataset, Order::Sequential).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

/// A batch of 1 MiB is copied by several threads, in parts of 64 rows here.
#[test]
fn batches_that_several_threads_copy_are_the_same_batches() {
    let url = memory();
    plain(&url);
    let dataset = open(&url);
    for order in ORDERS {
        for batch in [255, 256, 257, 320, 701] {
            let of =
                |threads| ids(&drain(&dataset, &StreamOptions { threads, ..options(order, batch) }, Cursor::default()));
            let (one, three) = (of(1), of(3));
            assert_eq!(one.len() as u64, ROWS);
            assert!(one == three, "{order:?}, batches of {batch}: three threads bring other rows than one");
            assert!(order != Order::Sequential || one.into_iter().eq(0..ROWS), "storage order");
        }
    }
    // Rows that are longer than a thread's part, as one thread's limit, just above it, and two of them.
    for width in [(1 << 17) - 4, 1 << 17, (1 << 17) + 4, 1 << 18] {
        let url = memory();
        let store = Store::open(&url).unwrap();
        let mut writer = ShardWriter::create(&store, WriteOptions::new(width, Dtype::F16)).unwrap();
        (0..11).for_each(|i| writer.write(&row(i, 2 * width), &[]).unwrap());
        writer.finish().unwrap();
        let options = StreamOptions { threads: 2, ..options(Order::Sequential, 5) };
        assert!(ids(&drain(&open(&url), &options, Cursor::default())).into_iter().eq(0..11), "{width}");
    }
}

/// Places of a sample are cut every 8 MiB, and units elsewhere.
#[test]
fn a_sample_of_all_rows_is_all_rows() {
    let url = memory();
    write(&url, Compression::None, noise);
    let dataset = open(&url);
    for n in [ROWS - 1, ROWS, ROWS + 1] {
        let sampled = sample(&dataset, n as usize, 3, &SkipList::default(), &RowFilter::default()).unwrap();
        assert_eq!(sampled.ids.len() as u64, n.min(ROWS));
        let mut expected = vec![0f32; WIDTH];
        for (id, values) in sampled.ids.iter().zip(sampled.rows.chunks_exact(WIDTH)) {
            Dtype::F16.to_f32(&noise(id.row), &mut expected);
            assert!(values == expected, "row {}", id.row);
        }
        let mut rows: Vec<u64> = sampled.ids.iter().map(|id| id.row).collect();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len() as u64, n.min(ROWS), "none twice");
    }
}

#[test]
fn a_sample_comes_from_64_places() {
    for (groups, places) in [(63, 63), (64, 64), (65, 64), (200, 64)] {
        let url = memory();
        // Pages of 37 rows, 13 in a row group.
        common::write(&url, 481 * groups, u64::MAX, 8, Dtype::F16);
        let sampled = sample(&open(&url), 640, 1, &SkipList::default(), &RowFilter::default()).unwrap();
        let mut found: Vec<u64> = sampled.ids.iter().map(|id| id.row / 481).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!((found.len(), sampled.ids.len()), (places, 640), "of {groups} row groups");
    }
}

/// A footer of which the last 64 KiB of a file hold a part is read in a second request. Its row groups are small here.
#[test]
fn footers_longer_than_the_first_read_are_read() {
    for groups in [1, 400, 3000] {
        let url = memory();
        let store = Store::open(&url).unwrap();
        let options = WriteOptions { row_group_bytes: 1, page_bytes: 1, ..WriteOptions::new(8, Dtype::F16) };
        let mut writer = ShardWriter::create(&store, options).unwrap();
        (0..groups).for_each(|i| writer.write(&row(i, 16), &[]).unwrap());
        writer.finish().unwrap();
        store.delete("manifest.json").unwrap();
        let dataset = open(&url);
        assert_eq!(dataset.shards()[0].row_groups.len() as u64, groups);
        let options = StreamOptions { order: Order::Sequential, batch: 64, ..StreamOptions::default() };
        assert!(ids(&drain(&dataset, &options, Cursor::default())).into_iter().eq(0..groups));
    }
}

/// Footers are read by 16 threads at once.
#[test]
fn shards_without_a_manifest_are_put_in_order() {
    for shards in [15, 16, 17, 33] {
        let url = memory();
        common::write(&url, 10 * shards, 10, 8, Dtype::F16).delete("manifest.json").unwrap();
        let dataset = open(&url);
        assert_eq!((dataset.shards().len() as u64, dataset.rows()), (shards, 10 * shards));
        let options = StreamOptions { order: Order::Sequential, batch: 64, ..StreamOptions::default() };
        assert!(ids(&drain(&dataset, &options, Cursor::default())).into_iter().eq(0..10 * shards));
    }
}

/// Rows come from blocks of 1,024, of which 64 are made at a time: how many there are changes none of them.
#[test]
fn synthetic_rows_do_not_depend_on_how_many_there_are() {
    let made = |rows: u64| {
        let url = memory();
        let spec = Spec { features: 8, width: 4, rows, shards: 1, active: 2.0, ..Spec::default() };
        synth::write(&spec, &Store::open(&url).unwrap(), 2, &mut |_| ()).unwrap();
        common::rows_of(&open(&url))
    };
    let most = made(65 * 1024 + 1);
    assert_eq!(most.len(), 4 * (65 * 1024 + 1));
    for rows in [1, 1023, 1024, 1025, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1] {
        assert!(made(rows) == most[..4 * rows as usize], "{rows} rows");
    }
    let block = |b: usize| &most[4 * 1024 * b..4 * 1024 * (b + 1)];
    assert!((1..65).all(|b| block(b) != block(b - 1) && block(b) != block(0)), "each block has rows of its own");
}

//! Damaged and hostile files: an error that names the file, or the same rows. Never a panic, a hang or other rows.
#![allow(clippy::unwrap_used)]

mod common;

use common::{memory, open, row, write};
use loader::{Cursor, Dataset, Dtype, Error, Help, Manifest, OpenOptions, Order, Store, Stream, StreamOptions};
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};

const ROWS: u64 = 400;
const ROW: usize = 32;

/// Reads everything; rows as bytes.
fn read(url: &str) -> Result<Vec<u8>, Error> {
    let dataset = Dataset::open(&[url.to_string()], &OpenOptions::default())?;
    let options = StreamOptions { order: Order::Sequential, batch: 100, ..StreamOptions::default() };
    let mut stream = Stream::start(&dataset, options, Cursor::default())?;
    // A damaged footer may claim more rows than there are: the caller's buffer is its own.
    let mut buffer = vec![0; 100 * dataset.row_bytes().min(1 << 20)];
    let mut out = Vec::new();
    while let Some(batch) = stream.next(&mut buffer)? {
        out.extend_from_slice(&buffer[..batch.rows * dataset.row_bytes()]);
    }
    Ok(out)
}

fn expected() -> Vec<u8> {
    (0..ROWS).flat_map(|i| row(i, ROW)).collect()
}

/// A small deterministic generator of mutations.
fn mutate(file: &[u8], n: u64) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |limit: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 16) as usize % limit.max(1)
    };
    let mut bytes = file.to_vec();
    // Half of the mutations hit the last 800 bytes, where the footer is.
    let mut place = |len: usize| if n.is_multiple_of(2) { next(len) } else { len - 1 - next(len.min(800)) };
    match n % 5 {
        0 => bytes.truncate(if n == 0 { 23 } else { place(file.len()) }),
        1 | 2 => {
            let at = place(file.len());
            bytes[at] ^= 1 << (n / 5 % 8);
        }
        3 => {
            let at = place(file.len());
            let end = (at + 8).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
        _ => {
            let at = place(file.len());
            bytes.drain(at..(at + 5).min(file.len()));
        }
    }
    bytes
}

#[test]
fn mutations_with_a_manifest_are_all_caught() {
    let url = memory();
    let store = write(&url, ROWS, 1000, ROW / 2, Dtype::F16);
    let file = store.get("shard-00000.parquet").unwrap();
    let wanted = expected();
    let (mut caught, mut harmless) = (0, 0);
    for n in 0..300 {
        store.put("shard-00000.parquet", mutate(&file, n)).unwrap();
        match read(&url) {
            Ok(rows) => {
                assert_eq!(rows, wanted, "mutation {n} changed rows silently");
                harmless += 1;
            }
            Err(e) => {
                assert!(e.to_string().contains("shard-00000.parquet"), "mutation {n}: {e}");
                assert!(
                    matches!(e, Error::Data { .. } | Error::Changed { .. } | Error::Unreachable { .. }),
                    "mutation {n}: {e}"
                );
                caught += 1;
            }
        }
    }
    // Harmless are those in the footer, which a manifest makes unnecessary.
    assert!(caught > 150 && harmless > 0, "{caught} caught, {harmless} harmless");
}

#[test]
fn mutations_without_a_manifest_end_in_an_error_or_in_rows() {
    for compressed in [false, true] {
        let url = memory();
        let store = if compressed { write_zstd(&url) } else { write(&url, ROWS, 1000, ROW / 2, Dtype::F16) };
        store.delete("manifest.json").unwrap();
        let file = store.get("shard-00000.parquet").unwrap();
        let mut caught = 0;
        for n in 0..300 {
            store.put("shard-00000.parquet", mutate(&file, n)).unwrap();
            if let Err(e) = read(&url) {
                assert!(e.to_string().contains("shard-00000.parquet"), "mutation {n}: {e}");
                caught += 1;
            }
        }
        // Without a manifest nothing can tell a flipped bit of a row from a row: Parquet carries no checksums here.
        assert!(caught > 120, "{caught}");
    }
}

fn write_zstd(url: &str) -> Store {
    let store = Store::open(url).unwrap();
    let mut options = loader::WriteOptions::new(ROW / 2, Dtype::F16);
    (options.compression, options.row_group_bytes) = (loader::Compression::Zstd, 100 * ROW);
    let mut writer = loader::ShardWriter::create(&store, options).unwrap();
    (0..ROWS).for_each(|i| writer.write(&row(i, ROW), &[]).unwrap());
    writer.finish().unwrap();
    store
}

/// The file with another number of rows in the footer, for its first row group.
fn claim(file: &bytes::Bytes, rows: i64) -> Vec<u8> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(file).unwrap();
    let mut groups = metadata.row_groups().to_vec();
    groups[0] = groups[0].clone().into_builder().set_num_rows(rows).build().unwrap();
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    let footer = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let mut bytes = file[..file.len() - 8 - footer].to_vec();
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
    bytes
}

/// The most address space that this process ever had, in bytes: what is reserved and never touched counts too.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn a_footer_that_lies_about_rows_takes_no_memory() {
    let url = memory();
    let store = write_zstd(&url);
    store.delete("manifest.json").unwrap();
    let file = store.get("shard-00000.parquet").unwrap();
    store.put("shard-00000.parquet", claim(&file, ROWS as i64)).unwrap();
    assert_eq!(read(&url).unwrap(), expected(), "the truth is believed");
    // 8 GiB of rows.
    store.put("shard-00000.parquet", claim(&file, 1 << 28)).unwrap();
    let before = peak();
    let options = StreamOptions { order: Order::Sequential, batch: 100, prefetch_bytes: 1 << 40, ..Default::default() };
    let mut stream = Stream::start(&open(&url), options, Cursor::default()).unwrap();
    let error = stream.next(&mut vec![0; 100 * ROW]).unwrap_err().to_string();
    let says = "shard-00000.parquet, row group 0: damaged: 268435456 rows are declared, and 400 values in the pages";
    assert!(error.ends_with(says), "{error}");
    assert!(peak() - before < 4 << 30, "{before} bytes before, {} after", peak());
}

#[test]
fn a_skipped_row_group_no_longer_stops_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap();
    write(url, 2000, 2000, 16, Dtype::F16);
    let path = folder.path().join("shard-00000.parquet");
    let group = open(url).shards()[0].row_groups[1].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[group.offset as usize + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = read(url).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with(
                "shard-00000.parquet, row group 1: damaged: the checksum differs from the manifest's: fetch or make the file \
                 again"
            ),
        "{error}"
    );
    let entry = "shard-00000.parquet#1".to_owned();
    assert!(matches!(error, Error::Data { help: Some(Help::Skip(named)), .. } if named == entry));
    let mut options = StreamOptions { batch: 100, ..StreamOptions::default() };
    options.skip.add_row_group(0, 1);
    let rows: usize = common::drain(&open(url), &options, Cursor::default()).iter().map(|(b, _)| b.rows).sum();
    assert_eq!(rows as u64, 2000 - group.rows);
}

#[test]
fn a_file_that_changes_during_a_run_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap();
    write(url, 2000, 1000, 16, Dtype::F16);
    let dataset = open(url);
    let path = folder.path().join("shard-00001.parquet");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let options = StreamOptions { order: Order::Sequential, batch: 100, ..StreamOptions::default() };
    let mut stream = Stream::start(&dataset, options, Cursor::default()).unwrap();
    let mut buffer = vec![0; 3200];
    let error = loop {
        if let Err(e) = stream.next(&mut buffer) {
            break e;
        }
    };
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn manifests_cannot_point_elsewhere() {
    let url = memory();
    let store = write(&url, 100, 1000, 16, Dtype::F16);
    let json = String::from_utf8(store.get("manifest.json").unwrap().to_vec()).unwrap();
    for (path, says) in [
        ("/etc/passwd", "is absolute"),
        ("../x.parquet", "leaves the manifest's folder"),
        ("a/../../x", "leaves the manifest's folder"),
        ("s3://other/x", "is a URL"),
        ("a//b", "is not in its plain form"),
    ] {
        let bad = json.replace("shard-00000.parquet", path);
        let error = Manifest::from_json(bad.as_bytes(), "manifest.json").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let edited = json.replace("\"width\":16", "\"width\":15");
    assert!(Manifest::from_json(edited.as_bytes(), "m").unwrap_err().to_string().contains("edited or damaged"));
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    write(inner.to_str().unwrap(), 100, 1000, 16, Dtype::F16);
    std::fs::rename(inner.join("shard-00000.parquet"), folder.path().join("outside.parquet")).unwrap();
    std::os::unix::fs::symlink("../outside.parquet", inner.join("shard-00000.parquet")).unwrap();
    let linked = Dataset::open(&[inner.to_str().unwrap().into()], &OpenOptions::default()).unwrap();
    assert!(
        linked.has_manifest() && linked.rows() == 100,
        "a link is followed: a user who makes one could as well put the shard there"
    );
}

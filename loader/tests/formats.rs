//! Every layout that is read gives the same rows, on every store; what cannot be read says why.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float16Array, Float32Array, Int32Array, ListArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Field;
use common::{drain, file, ids, memory, open, rows_of, write};
use half::f16;
use loader::{
    Compression, Cursor, Dataset, Dtype, Error, ExtraColumn, InspectOptions, ManifestState, OpenOptions, Order,
    RowFilter, RowId, ShardWriter, SkipList, Store, Stream, StreamOptions, WriteOptions, inspect, sample,
};
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

const WIDTH: usize = 24;
const ROWS: usize = 700;

fn value(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 512) as f32 - 100.0
}

fn values() -> Vec<f32> {
    (0..ROWS).flat_map(|r| (0..WIDTH).map(move |c| value(r, c))).collect()
}

fn fixed_list(values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    Arc::new(FixedSizeListArray::new(field, WIDTH as i32, values, None))
}

fn list(values: ArrayRef, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
}

fn f16s() -> ArrayRef {
    Arc::new(Float16Array::from_iter_values(values().into_iter().map(f16::from_f32)))
}

fn f32s() -> ArrayRef {
    Arc::new(Float32Array::from(values()))
}

fn binary(dtype: Dtype) -> ArrayRef {
    let mut bytes = vec![0; ROWS * WIDTH * dtype.size()];
    dtype.from_f32(&values(), &mut bytes);
    Arc::new(FixedSizeBinaryArray::try_from_iter(bytes.chunks(WIDTH * dtype.size())).unwrap())
}

fn dtype_key(dtype: Dtype) -> WriterPropertiesBuilder {
    plain().set_key_value_metadata(Some(vec![KeyValue::new("sae.dtype".into(), dtype.name().to_string())]))
}

fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_dictionary_enabled(false).set_max_row_group_row_count(Some(200))
}

fn one(
    name: &'static str,
    array: ArrayRef,
    nullable: bool,
    properties: WriterPropertiesBuilder,
) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    file(&folder.path().join("a.parquet"), vec![(name, array, nullable)], properties);
    let url = folder.path().to_str().unwrap().to_string();
    (folder, url)
}

fn read(url: &str) -> Vec<f32> {
    rows_of(&open(url))
}

fn failure(url: &str) -> String {
    Dataset::open(&[url.to_string()], &OpenOptions::default()).unwrap_err().to_string()
}

#[test]
fn all_layouts_give_the_same_rows() {
    let zstd = || plain().set_compression(Codec::ZSTD(ZstdLevel::default()));
    let snappy = || plain().set_compression(Codec::SNAPPY);
    let v2 = || plain().set_writer_version(parquet::file::properties::WriterVersion::PARQUET_2_0);
    let dictionary = || WriterProperties::builder().set_max_row_group_row_count(Some(300));
    let key = |d| dtype_key(d);
    let lengths = || std::iter::repeat_n(WIDTH, ROWS);
    let cases: Vec<(&str, ArrayRef, bool, WriterPropertiesBuilder)> = vec![
        ("fixed list f16", fixed_list(f16s()), false, plain()),
        ("fixed list f32", fixed_list(f32s()), false, plain()),
        ("fixed list f32, nullable", fixed_list(f32s()), true, plain()),
        ("list f16", list(f16s(), lengths()), true, plain()),
        ("list f32", list(f32s(), lengths()), false, plain()),
        ("list f32 zstd", list(f32s(), lengths()), false, zstd()),
        ("fixed list f16 snappy", fixed_list(f16s()), false, snappy()),
        ("fixed list f16 v2 pages", fixed_list(f16s()), true, v2()),
        ("fixed list f32 dictionary", fixed_list(f32s()), false, dictionary()),
        ("binary f16", binary(Dtype::F16), false, key(Dtype::F16)),
        ("binary f32", binary(Dtype::F32), false, key(Dtype::F32)),
        ("binary f32, nullable", binary(Dtype::F32), true, key(Dtype::F32)),
        (
            "binary f16 zstd",
            binary(Dtype::F16),
            false,
            key(Dtype::F16).set_compression(Codec::ZSTD(ZstdLevel::default())),
        ),
        (
            "binary f16 v2 pages",
            binary(Dtype::F16),
            true,
            key(Dtype::F16).set_writer_version(parquet::file::properties::WriterVersion::PARQUET_2_0),
        ),
        ("small pages", fixed_list(f16s()), false, plain().set_data_page_size_limit(100).set_write_batch_size(7)),
    ];
    for (name, array, nullable, properties) in cases {
        let (_folder, url) = one("act", array, nullable, properties);
        assert_eq!(read(&url), values(), "{name}");
        // A second pass over known checksums, in the other order.
        let report =
            inspect(std::slice::from_ref(&url), InspectOptions { write_manifest: true, ..Default::default() }).unwrap();
        assert_eq!((report.manifest, report.mismatches.len()), (ManifestState::Written, 0), "{name}");
        assert!(open(&url).has_manifest());
        assert_eq!(read(&url), values(), "{name}, with a manifest");
    }
    // bf16 keeps eight bits.
    let (_folder, url) = one("x", binary(Dtype::Bf16), false, dtype_key(Dtype::Bf16));
    assert!(read(&url).iter().zip(values()).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
}

#[test]
fn our_layout_on_every_store_and_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    for url in [
        memory(),
        folder.path().join("a").to_str().unwrap().to_string(),
        format!("file://{}/b", folder.path().display()),
    ] {
        write(&url, 1234, 500, 16, Dtype::Bf16);
        let dataset = open(&url);
        assert_eq!(
            (dataset.rows(), dataset.width(), dataset.dtype(), dataset.shards().len()),
            (1234, 16, Dtype::Bf16, 3)
        );
        assert!(dataset.has_manifest() && !dataset.prepared());
        let options = StreamOptions { order: Order::Sequential, batch: 100, ..StreamOptions::default() };
        assert!(ids(&drain(&dataset, &options, Cursor::default())).into_iter().eq(0..1234));
        // Single files and globs see parts; the manifest beside them is used.
        let part = open(&format!("{url}/shard-00001.parquet"));
        assert_eq!((part.rows(), part.has_manifest()), (500, true));
        let part = open(&format!("{url}/shard-0000[12].parquet"));
        assert_eq!((part.rows(), part.has_manifest()), (734, true));
        let parts = ["shard-0000[02].parquet", "shard-00001.parquet"].map(|part| format!("{url}/{part}"));
        let two = Dataset::open(&parts, &OpenOptions::default()).unwrap();
        assert_eq!((two.rows(), two.has_manifest()), (1234, true));
        // Without the manifest the order has another identity, but the rows are the same.
        let store = Store::open(&url).unwrap();
        store.delete("manifest.json").unwrap();
        assert!(ids(&drain(&open(&url), &options, Cursor::default())).into_iter().eq(0..1234));
    }
    let url = memory();
    let store = Store::open(&url).unwrap();
    let mut options = WriteOptions::new(16, Dtype::Bf16);
    (options.compression, options.row_group_bytes) = (Compression::Zstd, 4096);
    let mut writer = ShardWriter::create(&store, options).unwrap();
    (0..300).for_each(|i| writer.write(&common::row(i, 32), &[]).unwrap());
    writer.finish().unwrap();
    let options = StreamOptions { order: Order::Sequential, batch: 100, ..StreamOptions::default() };
    assert!(ids(&drain(&open(&url), &options, Cursor::default())).into_iter().eq(0..300));
}

#[test]
fn a_bionemo_store_is_read_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap();
    for i in 0..2 {
        file(&folder.path().join(format!("shard_{i:05}.parquet")), vec![("act", fixed_list(f32s()), true)], plain());
    }
    let metadata =
        |shards: usize| format!("{{\"n_samples\":1400,\"hidden_dim\":24,\"n_shards\":{shards},\"shard_size\":700}}");
    std::fs::write(folder.path().join("metadata.json"), metadata(2)).unwrap();
    assert_eq!(read(url), [values(), values()].concat());
    std::fs::write(folder.path().join("metadata.json"), metadata(3)).unwrap();
    assert!(failure(url).ends_with("metadata.json: speaks of 3 shards, there are 2"));
}

/// Pages of two columns of one form cannot be told from each other: a manifest that was made for one is not used for the other.
#[test]
fn a_manifest_of_another_column_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let other: Vec<f32> = values().iter().map(|value| value + 7.0).collect();
    let mut bytes = vec![0; ROWS * WIDTH * Dtype::F16.size()];
    Dtype::F16.from_f32(&other, &mut bytes);
    let second: ArrayRef =
        Arc::new(FixedSizeBinaryArray::try_from_iter(bytes.chunks(WIDTH * Dtype::F16.size())).unwrap());
    let columns = vec![("layer3", binary(Dtype::F16), false), ("layer9", second, false)];
    file(&folder.path().join("a.parquet"), columns, dtype_key(Dtype::F16));
    let url = folder.path().to_str().unwrap().to_string();
    let opened = |column: Option<&str>| {
        let options = OpenOptions { column: column.map(str::to_owned), ..OpenOptions::default() };
        Dataset::open(std::slice::from_ref(&url), &options)
    };
    let write = |column: &str| {
        let open = OpenOptions { column: Some(column.to_owned()), ..OpenOptions::default() };
        let options = InspectOptions { open, write_manifest: true, ..InspectOptions::default() };
        inspect(std::slice::from_ref(&url), options).unwrap()
    };
    write("layer3");
    assert_eq!(rows_of(&opened(Some("layer3")).unwrap()), values());
    assert!(opened(Some("layer3")).unwrap().has_manifest() && !opened(Some("layer9")).unwrap().has_manifest());
    assert_eq!(rows_of(&opened(Some("layer9")).unwrap()), other);
    assert!(opened(None).unwrap_err().to_string().contains("several columns could be the activations"));
    assert!(opened(Some("layer5")).unwrap_err().to_string().contains("no activation column named layer5"));
    write("layer9");
    assert_eq!(rows_of(&opened(Some("layer9")).unwrap()), other);
    assert_eq!(rows_of(&opened(Some("layer3")).unwrap()), values());
}

#[test]
fn errors_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| failure(at(name).to_str().unwrap()).replace(folder.path().to_str().unwrap(), "DIR");
    std::fs::create_dir(at("empty")).unwrap();
    assert_eq!(text("empty"), "DIR/empty: not found: no .parquet or .pq files there; check the prefix");
    assert_eq!(text("absent.parquet"), "DIR/absent.parquet: not found");
    std::fs::write(at("a.parquet"), vec![7u8; 1000]).unwrap();
    assert_eq!(text("a.parquet"), "DIR/a.parquet: not a Parquet file (or cut off): it does not end in PAR1");
    file(&at("b.parquet"), vec![("act", binary(Dtype::F16), false)], plain());
    assert_eq!(
        text("b.parquet"),
        "DIR/b.parquet: column act is FixedSizeBinary(48) and nothing says what the bytes are: add the metadata sae.dtype \
         (f32, f16 or bf16) and sae.width to the file or the field"
    );
    let ints: ArrayRef = Arc::new(Int32Array::from(vec![1; ROWS]));
    file(&at("c.parquet"), vec![("pos", ints, false)], plain());
    assert_eq!(
        text("c.parquet"),
        "DIR/c.parquet: no activation column: FixedSizeBinary or a list of float16/float32/float64 is needed; the file has: pos: INT32"
    );
    file(&at("d.parquet"), vec![("x", fixed_list(f16s()), false), ("y", fixed_list(f16s()), false)], plain());
    assert_eq!(text("d.parquet"), "DIR/d.parquet: several columns could be the activations (x, y)");
    let ragged = list(f32s(), (0..ROWS).map(|r| if r % 2 == 0 { WIDTH - 1 } else { WIDTH + 1 }));
    file(&at("e.parquet"), vec![("act", ragged, false)], plain());
    let dataset = open(at("e.parquet").to_str().unwrap());
    let mut stream = Stream::start(&dataset, StreamOptions::default(), Cursor::default()).unwrap();
    let error = stream.next(&mut vec![0; 4096 * dataset.row_bytes()]).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error}");
    assert!(error.to_string().contains("row group") && error.to_string().contains("width"), "{error}");
    // It would come the same again.
    let report = inspect(&[at("e.parquet").to_str().unwrap().into()], InspectOptions::default()).unwrap();
    assert!(
        !report.mismatches.is_empty() && report.mismatches.iter().all(|m| !m.contains("again")),
        "{:?}",
        report.mismatches
    );
    std::fs::create_dir(at("mixed")).unwrap();
    file(&at("mixed/a.parquet"), vec![("act", fixed_list(f16s()), false)], plain());
    file(&at("mixed/b.parquet"), vec![("act", fixed_list(f32s()), false)], plain());
    assert_eq!(
        text("mixed"),
        "DIR/mixed/b.parquet: rows of 24 × f32 here, of 24 × f16 in DIR/mixed/a.parquet: all shards need one shape"
    );
}

/// The codec is a number in the footer: nobody writes such pages.
#[test]
fn a_codec_that_no_reader_has_is_refused_by_name() {
    let zstd = dtype_key(Dtype::F16).set_compression(Codec::ZSTD(ZstdLevel::default()));
    let (folder, url) = one("activation", binary(Dtype::F16), false, zstd);
    let path = folder.path().join("a.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    // Field 4 of the column's metadata follows its path: an i32, zigzag; zstd is 6, LZO 3.
    let codec = b"activation\x15\x0c";
    let places: Vec<usize> = (0..bytes.len() - codec.len()).filter(|&i| bytes[i..].starts_with(codec)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|i| bytes[i + codec.len() - 1] = 2 * 3);
    std::fs::write(&path, bytes).unwrap();
    let error = Dataset::open(&[url], &OpenOptions::default()).unwrap_err();
    let says = "a.parquet: compressed with LZO: write it with zstd, snappy, lz4, gzip, brotli or none";
    assert!(error.to_string().ends_with(says) && matches!(error, Error::Data { .. }), "{error}");
}

#[test]
fn nulls_are_called_nulls() {
    let rows = || (0..ROWS).map(|r| (r != 3).then(|| vec![Some(r as f32); WIDTH]));
    let lists = ListArray::from_iter_primitive::<arrow::datatypes::Float32Type, _, _>(rows());
    let values = (0..ROWS).map(|r| Some(vec![(r != 3).then_some(1f32); WIDTH]));
    let values = ListArray::from_iter_primitive::<arrow::datatypes::Float32Type, _, _>(values);
    let bytes = (0..ROWS).map(|r| (r != 3).then(|| vec![1u8; 32]));
    let bytes = FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 32).unwrap();
    for array in [Arc::new(lists) as ArrayRef, Arc::new(values), Arc::new(bytes)] {
        let (_folder, url) = one("act", array, true, dtype_key(Dtype::F16));
        let error = Dataset::open(&[url], &OpenOptions::default()).and_then(|dataset| {
            let mut stream = Stream::start(&dataset, StreamOptions::default(), Cursor::default())?;
            stream.next(&mut vec![0; ROWS * dataset.row_bytes()])
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("row group 0: null values"), "{error}");
    }
}

#[test]
fn samples_leave_out_what_is_skipped_and_filtered() {
    let url = memory();
    let store = Store::open(&url).unwrap();
    let mut options = WriteOptions::new(4, Dtype::F32);
    (options.row_group_bytes, options.page_bytes) = (100 * 16, 10 * 16);
    let mut writer = ShardWriter::create(&store, options).unwrap();
    for i in 0..1000u32 {
        let bad = [(10, f32::NAN), (20, f32::INFINITY), (30, f32::NEG_INFINITY)].into_iter().find(|b| b.0 == i);
        let row = [i as f32, 1.0, 1.0, bad.map_or(1.0, |b| b.1)];
        writer.write(&row.map(f32::to_le_bytes).concat(), &[]).unwrap();
    }
    writer.finish().unwrap();
    // A row group that is skipped is not read: this one is damaged.
    let group = open(&url).shards()[0].row_groups[2].clone();
    let mut bytes = store.get("shard-00000.parquet").unwrap().to_vec();
    bytes[group.offset as usize + 300] ^= 1;
    store.put("shard-00000.parquet", bytes).unwrap();
    let dataset = open(&url);
    let mut skip = SkipList::default();
    skip.add_row(RowId { shard: 0, row: 50 });
    let filter = RowFilter { finite: true, ..RowFilter::default() };
    assert!(!filter.is_empty());
    let first = |n, skip: &SkipList, filter: &RowFilter| {
        let sample = sample(&dataset, n, 3, skip, filter)?;
        let rows: Vec<u32> = sample.rows.chunks(4).map(|r| r[0] as u32).collect();
        assert!(sample.ids.iter().map(|id| id.row as u32).eq(rows.iter().copied()), "ids are those of the rows");
        Ok::<Vec<u32>, loader::Error>(rows)
    };
    assert!(first(1000, &skip, &filter).unwrap_err().to_string().contains("row group 2"));
    skip.add_row_group(0, 2);
    let mut rows = first(1000, &skip, &filter).unwrap();
    assert_eq!(rows, first(1000, &skip, &filter).unwrap());
    rows.sort_unstable();
    let kept = |i: &u32| !(200..300).contains(i) && ![10, 20, 30, 50].contains(i);
    assert!(rows.into_iter().eq((0..1000).filter(kept)));
    assert_eq!(first(1000, &skip, &RowFilter::default()).unwrap().len(), 899, "NaN passes unless it is filtered");
    let few = first(100, &skip, &filter).unwrap();
    assert!(few.len() == 100 && few.iter().all(kept), "what a place lacks comes from the next");
    // The same filter on a stream.
    let order = Order::Direct { window_bytes: 1 << 20 };
    let options = StreamOptions { order, batch: 1000, skip, filter, ..StreamOptions::default() };
    let mut stream = Stream::start(&dataset, options, Cursor::default()).unwrap();
    let batch = stream.next(&mut vec![0; 16_000]).unwrap().unwrap();
    assert_eq!((batch.rows, batch.skipped, batch.filtered), (896, 101, 3));
}

#[test]
fn skip_list_and_filters_shorten_batches_and_move_nothing() {
    let url = memory();
    let store = Store::open(&url).unwrap();
    let mut options = WriteOptions::new(8, Dtype::F16);
    (options.columns, options.row_group_bytes, options.page_bytes) = (ExtraColumn::tokens(), 100 * 16, 10 * 16);
    let mut writer = ShardWriter::create(&store, options).unwrap();
    for i in 0..1000u64 {
        let mut row = vec![0u8; 16];
        Dtype::F16.from_f32(&[(i % 50) as f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, i as f32], &mut row);
        let (token_id, pos) = ([(i % 20) as i32], [(i % 7) as i32]);
        writer.write(&row, &[(&token_id).into(), (&[0]).into(), (&pos).into()]).unwrap();
    }
    writer.finish().unwrap();
    let dataset = open(&url);
    let run = |skip: SkipList, filter: RowFilter| {
        let order = Order::Direct { window_bytes: 1 << 20 };
        let o = StreamOptions { order, batch: 128, skip, filter, ..StreamOptions::default() };
        let mut stream = Stream::start(&dataset, o, Cursor::default()).unwrap();
        let mut buffer = vec![0; stream.max_rows() * 16];
        let (mut rows, mut skipped, mut filtered) = (Vec::new(), 0, 0);
        while let Some(batch) = stream.next(&mut buffer).unwrap() {
            (skipped, filtered) = (skipped + batch.skipped, filtered + batch.filtered);
            assert_eq!(stream.row_ids(&batch).len(), batch.rows);
            rows.extend(stream.row_ids(&batch).iter().map(|id| id.row));
        }
        (rows, skipped, filtered)
    };
    let (all, ..) = run(SkipList::default(), RowFilter::default());
    let mut skip = SkipList::default();
    skip.add_row(RowId { shard: 0, row: 5 });
    skip.add_row_group(0, 3);
    let (kept, skipped, filtered) =
        run(skip.clone(), RowFilter { positions: vec![0], token_ids: vec![4], ..RowFilter::default() });
    let out = |i: &u64| *i == 5 || (300..400).contains(i) || i.is_multiple_of(7) || i % 20 == 4;
    assert!(kept.iter().eq(all.iter().filter(|i| !out(i))), "the same order, shorter");
    assert_eq!((skipped, kept.len() as u64 + skipped + filtered), (101, 1000));
    let filter = RowFilter { norm_min: Some(100.0), norm_max: Some(500.0), ..RowFilter::default() };
    let (kept, ..) = run(SkipList::default(), filter);
    assert!(kept.iter().all(|i| (87..=500).contains(i)) && kept.len() > 380);
    let mut more = skip.clone();
    more.add_row(RowId { shard: 0, row: 6 });
    assert!(more.includes(&skip) && !skip.includes(&more));
}

#[test]
fn a_sample_is_deterministic_and_spread() {
    let url = memory();
    write(&url, 20_000, 7000, 16, Dtype::F32);
    let dataset = open(&url);
    let sampled = |n, seed| sample(&dataset, n, seed, &SkipList::default(), &RowFilter::default()).unwrap().rows;
    let a = sampled(1000, 3);
    assert_eq!(a.len(), 16_000);
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&a), bits(&sampled(1000, 3)));
    assert_ne!(bits(&a), bits(&sampled(1000, 4)));
    let mut rows: Vec<u32> = a.chunks(16).map(|r| r[0].to_bits()).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), 1000, "no row twice");
    assert_eq!(sampled(50_000, 3).len(), 20_000 * 16);
}

/// The real activations, where the checkout has them beside it.
fn minilm() -> Option<PathBuf> {
    let path = Path::new("../../shared/data/minilm").to_owned();
    path.join("train").exists().then_some(path)
}

#[test]
fn real_activations() {
    let Some(folder) = minilm() else {
        return untested::skip("there are no MiniLM activations beside the checkout");
    };
    let url = folder.join("train").to_str().unwrap().to_string();
    let dataset = open(&url);
    assert_eq!((dataset.rows(), dataset.width(), dataset.dtype()), (131_072, 384, Dtype::F16));
    let report = inspect(&[url], InspectOptions::default()).unwrap();
    assert!((report.mean_norm_sq - 154.19).abs() < 0.5 && (report.mean_norm - 12.393).abs() < 0.05, "{report:?}");
    assert_eq!((report.non_finite, report.mismatches.len()), (0, 0));
    let options =
        StreamOptions { order: Order::Direct { window_bytes: 32 << 20 }, batch: 2048, ..StreamOptions::default() };
    let mut stream = Stream::start(&dataset, options, Cursor::default()).unwrap();
    let mut buffer = vec![0; 2048 * 768];
    let mut rows = 0;
    while let Some(batch) = stream.next(&mut buffer).unwrap() {
        rows += batch.rows;
    }
    assert_eq!(rows, 131_072);
    // Each row group is decoded once although 64 streams touch them.
    assert!(stream.bytes_read() < 131_072 * 768 * 6 / 5, "{}", stream.bytes_read());
}

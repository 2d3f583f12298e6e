//! Files of other writers: footers that name dictionaries differently, row groups and parts without rows, structs, nested lists,
//! float64, every codec, every integer type.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, ListArray, StringArray, StructArray, UInt8Array, UInt16Array, UInt32Array,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Field;
use common::{file, open, rows_of};
use half::f16;
use loader::{
    Cursor, Dataset, Dtype, Error, InspectOptions, ManifestState, OpenOptions, Order, RowFilter, SkipList, Stream,
    StreamOptions, inspect,
};
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{
    ColumnChunkMetaData, KeyValue, ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use tracing::field::Visit;

const WIDTH: usize = 6;
const ROWS: usize = 60;

/// Few values, so that a dictionary is worth while.
fn values() -> Vec<f32> {
    (0..ROWS * WIDTH).map(|i| ((i * 7 + i / WIDTH) % 50) as f32 - 20.0).collect()
}

fn f32s() -> ArrayRef {
    Arc::new(Float32Array::from(values()))
}

fn field(values: &ArrayRef) -> Arc<Field> {
    Arc::new(Field::new("item", values.data_type().clone(), true))
}

fn fixed(values: ArrayRef) -> ArrayRef {
    Arc::new(FixedSizeListArray::new(field(&values), WIDTH as i32, values, None))
}

fn lists(values: ArrayRef, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    Arc::new(ListArray::new(field(&values), OffsetBuffer::from_lengths(lengths), values, None))
}

fn wrap(name: &str, values: ArrayRef) -> ArrayRef {
    let field = Field::new(name, values.data_type().clone(), true);
    Arc::new(StructArray::new(vec![field].into(), vec![values], None))
}

fn binary() -> ArrayRef {
    let bytes: Vec<u8> = values().iter().flat_map(|v| v.to_le_bytes()).collect();
    Arc::new(FixedSizeBinaryArray::try_from_iter(bytes.chunks(4 * WIDTH)).unwrap())
}

/// Row groups of 20 records.
fn groups() -> WriterPropertiesBuilder {
    let dtype = KeyValue::new("sae.dtype".into(), "f32".to_string());
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(20));
    properties.set_key_value_metadata(Some(vec![dtype]))
}

fn plain() -> WriterPropertiesBuilder {
    groups().set_dictionary_enabled(false)
}

fn codecs() -> [Compression; 7] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ]
}

/// Changes the footer of a file.
fn rewrite(path: &Path, change: impl Fn(Vec<RowGroupMetaData>) -> Vec<RowGroupMetaData>) {
    let bytes = bytes::Bytes::from(std::fs::read(path).unwrap());
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let groups = change(metadata.row_groups().to_vec());
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let mut out = bytes[..bytes.len() - 8 - footer].to_vec();
    ParquetMetaDataWriter::new(&mut out, &metadata).finish().unwrap();
    std::fs::write(path, out).unwrap();
}

/// The row groups with every chunk changed.
fn each_chunk(
    groups: Vec<RowGroupMetaData>,
    change: impl Fn(usize, ColumnChunkMetaData) -> ParquetResult<ColumnChunkMetaData>,
) -> Vec<RowGroupMetaData> {
    let group = |group: RowGroupMetaData| {
        let columns = group.columns().iter().cloned().enumerate().map(|(i, c)| change(i, c).unwrap()).collect();
        group.into_builder().set_column_metadata(columns).build().unwrap()
    };
    groups.into_iter().map(group).collect()
}

fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().to_string();
    (folder, url)
}

/// The rows, and the same once a manifest lies beside them.
fn check(url: &str, expected: &[f32], what: &str) {
    assert!(rows_of(&open(url)) == expected, "{what}");
    let options = InspectOptions { write_manifest: true, ..InspectOptions::default() };
    let report = inspect(&[url.to_string()], options).unwrap();
    assert_eq!((report.manifest, report.mismatches), (ManifestState::Written, vec![]), "{what}");
    assert!(open(url).has_manifest(), "{what}");
    assert!(rows_of(&open(url)) == expected, "{what}, with a manifest");
}

fn refusal(url: &str) -> String {
    let rows = || -> Result<(), Error> {
        let dataset = Dataset::open(&[url.to_string()], &OpenOptions::default())?;
        let mut stream = Stream::start(&dataset, StreamOptions::default(), Cursor::default())?;
        stream.next(&mut vec![0; stream.max_rows() * dataset.row_bytes()]).map(drop)
    };
    rows().unwrap_err().to_string()
}

#[test]
fn a_dictionary_is_found_whatever_the_footer_calls_it() {
    type Change = fn(ColumnChunkMetaData) -> ParquetResult<ColumnChunkMetaData>;
    // What the writers have left in (data page, dictionary page).
    let first_page = |c: &ColumnChunkMetaData| c.dictionary_page_offset().unwrap_or(c.data_page_offset());
    let as_mr: Change = |c| {
        let first = c.dictionary_page_offset().unwrap_or(c.data_page_offset());
        c.into_builder().set_data_page_offset(first).set_dictionary_page_offset(Some(0)).build()
    };
    let as_old_mr: Change = |c| {
        let first = c.dictionary_page_offset().unwrap_or(c.data_page_offset());
        c.into_builder().set_data_page_offset(first).set_dictionary_page_offset(None).build()
    };
    let as_polars: Change = |c| c.into_builder().set_dictionary_page_offset(None).build();
    let as_zero: Change = |c| c.into_builder().set_dictionary_page_offset(Some(0)).build();
    let pos = || -> ArrayRef { Arc::new(Int64Array::from_iter_values((0..ROWS as i64).map(|i| i % 5))) };
    let arrays = [("list", lists(f32s(), [WIDTH; ROWS])), ("fixed", fixed(f32s())), ("binary", binary())];
    for (layout, array) in arrays {
        for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            for (writer, change) in [("mr", as_mr), ("old mr", as_old_mr), ("Polars", as_polars), ("zero", as_zero)] {
                for dictionary in [true, false] {
                    let (folder, url) = folder();
                    let path = folder.path().join("a.parquet");
                    let text: ArrayRef =
                        Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| "ab"[..i % 3].to_string())));
                    let columns =
                        vec![("text", text, true), ("activation", array.clone(), false), ("pos", pos(), false)];
                    file(&path, columns, groups().set_dictionary_enabled(dictionary).set_compression(codec));
                    rewrite(&path, |groups| each_chunk(groups, |_, c| change(c)));
                    let what = format!("{layout}, {codec:?}, as {writer}, dictionary {dictionary}");
                    check(&url, &values(), &what);
                    assert_eq!(filtered(&url, "pos", &[2]), without(|row| row % 5 == 2), "{what}");
                }
            }
        }
    }
    // Only another column has it, even one that nobody reads and whose chunk is the last.
    let (folder, url) = folder();
    let path = folder.path().join("a.parquet");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a"; ROWS]));
    file(&path, vec![("activation", binary(), false), ("text", text, false)], groups());
    rewrite(&path, |groups| each_chunk(groups, |i, c| if i == 1 { as_polars(c) } else { Ok(c) }));
    assert_eq!(rows_of(&open(&url)), values());
    // What lies before the data is no dictionary.
    rewrite(&path, |groups| each_chunk(groups, |i, c| if i == 0 { as_polars(c) } else { Ok(c) }));
    let mut bytes = std::fs::read(&path).unwrap();
    let start = {
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(bytes.clone())).unwrap();
        first_page(metadata.row_group(0).column(0)) as usize
    };
    bytes[4..start].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let says = refusal(&url);
    assert!(says.contains("a.parquet") && says.contains("damaged"), "{says}");
}

/// What a filter on a column leaves of the rows.
fn filtered(url: &str, column: &str, unwanted: &[i32]) -> Vec<f32> {
    let dataset = open(url);
    let mut filter = RowFilter::default();
    match column {
        "pos" => filter.positions = unwanted.to_vec(),
        _ => filter.token_ids = unwanted.to_vec(),
    }
    let options = StreamOptions { order: Order::Sequential, batch: 64, filter, ..StreamOptions::default() };
    let mut stream = Stream::start(&dataset, options, Cursor::default()).unwrap();
    let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
    let mut out = Vec::new();
    while let Some(batch) = stream.next(&mut buffer).unwrap() {
        let mut rows = vec![0f32; batch.rows * WIDTH];
        dataset.dtype().to_f32(&buffer[..batch.rows * dataset.row_bytes()], &mut rows);
        out.extend(rows);
    }
    out
}

/// The rows without those.
fn without(left_out: impl Fn(usize) -> bool) -> Vec<f32> {
    values().chunks(WIDTH).enumerate().filter(|(row, _)| !left_out(*row)).flat_map(|(_, row)| row.to_vec()).collect()
}

#[test]
fn row_groups_and_parts_without_rows_add_nothing() {
    let nested = || lists(fixed(f32s()), [4; ROWS / 4]);
    let doubles =
        || -> ArrayRef { fixed(Arc::new(Float64Array::from_iter_values(values().into_iter().map(f64::from)))) };
    let snappy = || groups().set_compression(Compression::SNAPPY);
    let cases: Vec<(&str, ArrayRef, WriterPropertiesBuilder)> = vec![
        ("binary", binary(), plain()),
        ("binary, snappy", binary(), snappy()),
        ("fixed list", fixed(f32s()), plain()),
        ("fixed list, snappy", fixed(f32s()), snappy()),
        ("list", lists(f32s(), [WIDTH; ROWS]), plain()),
        ("list in a struct", wrap("data", lists(f32s(), [WIDTH; ROWS])), snappy()),
        ("nested", nested(), groups().set_max_row_group_row_count(Some(5))),
        ("nested, without statistics", nested(), plain().set_statistics_enabled(EnabledStatistics::None)),
        ("float64", doubles(), snappy()),
    ];
    for (name, array, properties) in cases {
        // As writers leave the chunks of such a group: somewhere, or nowhere.
        for nowhere in [false, true] {
            let (folder, url) = folder();
            let write = |name: &str, array: ArrayRef| {
                file(&folder.path().join(name), vec![("activation", array, false)], properties.clone());
            };
            write("part-1.parquet", array.clone());
            rewrite(&folder.path().join("part-1.parquet"), |groups| {
                let empty = each_chunk(vec![groups[0].clone()], |_, c| {
                    let c = c.into_builder().set_num_values(0).set_total_compressed_size(0);
                    if nowhere { c.set_data_page_offset(0).set_dictionary_page_offset(None).build() } else { c.build() }
                });
                let empty = empty[0].clone().into_builder().set_num_rows(0).build().unwrap();
                groups.into_iter().flat_map(|group| [empty.clone(), group]).chain([empty.clone()]).collect()
            });
            check(&url, &values(), name);
            std::fs::remove_file(folder.path().join("manifest.json")).unwrap();
            // The first part, one in the middle and the last have no rows; one does not even know what it would hold.
            write("part-0.parquet", array.slice(0, 0));
            write("part-2.parquet", array.slice(0, 0));
            let untyped: ArrayRef = Arc::new(Int32Array::from(Vec::<i32>::new()));
            write("part-3.parquet", untyped);
            let half = array.len() / 2;
            write("part-4.parquet", array.slice(0, half));
            write("part-5.parquet", array.slice(0, 0));
            let expected = [values(), values()[..half * values().len() / array.len()].to_vec()].concat();
            check(&url, &expected, name);
            assert_eq!(open(&url).shards().len(), 6);
        }
    }
    let (folder, url) = folder();
    file(
        &folder.path().join("a.parquet"),
        vec![("activation", lists(f32s(), [WIDTH; ROWS]).slice(0, 0), false)],
        plain(),
    );
    assert!(refusal(&url).ends_with("a.parquet: no rows in 1 files, so no width can be seen"), "{}", refusal(&url));
}

#[test]
fn lists_in_structs_are_read_with_every_codec() {
    let list = || lists(f32s(), [WIDTH; ROWS]);
    let arrays: [(&str, ArrayRef); 4] = [
        ("struct", wrap("data", list())),
        ("structs in a struct", wrap("a", wrap("b", wrap("data", fixed(f32s()))))),
        ("list of structs", lists(wrap("x", f32s()), [WIDTH; ROWS])),
        ("binary in a struct", wrap("data", binary())),
    ];
    for (name, array) in arrays {
        for codec in codecs() {
            for dictionary in [true, false] {
                let (folder, url) = folder();
                let properties = groups().set_compression(codec).set_dictionary_enabled(dictionary);
                file(&folder.path().join("a.parquet"), vec![("activation", array.clone(), true)], properties);
                check(&url, &values(), &format!("{name}, {codec:?}, dictionary {dictionary}"));
            }
        }
    }
    // Two lists in one struct: neither is more likely, and both have a name.
    let (folder, url) = folder();
    let other: ArrayRef = Arc::new(Float32Array::from_iter_values(values().into_iter().map(|v| v + 1.0)));
    let fields = ["layer3", "layer9"].map(|name| Field::new(name, list().data_type().clone(), true));
    let both = StructArray::new(fields.to_vec().into(), vec![list(), lists(other, [WIDTH; ROWS])], None);
    file(&folder.path().join("a.parquet"), vec![("activation", Arc::new(both), true)], plain());
    let opened = |column: Option<&str>| {
        let options = OpenOptions { column: column.map(str::to_owned), ..OpenOptions::default() };
        Dataset::open(std::slice::from_ref(&url), &options)
    };
    let several = opened(None).unwrap_err().to_string();
    let says = "several columns could be the activations (activation.layer3, activation.layer9)";
    assert!(several.ends_with(says), "{several}");
    let several = opened(Some("activation")).unwrap_err().to_string();
    assert!(
        several.contains("several columns lie under activation (activation.layer3, activation.layer9)"),
        "{several}"
    );
    assert_eq!(rows_of(&opened(Some("activation.layer3")).unwrap()), values());
    assert_eq!(rows_of(&opened(Some("activation.layer9")).unwrap())[0], values()[0] + 1.0);
}

/// Lengths of sequences that add up to the rows, some of them empty.
const SEQUENCES: [usize; 9] = [0, 7, 13, 0, 0, 20, 1, 0, 19];

#[test]
fn rows_of_nested_lists_are_the_inner_lists() {
    let no_statistics = || groups().set_statistics_enabled(EnabledStatistics::None);
    let f16s = || -> ArrayRef { Arc::new(Float16Array::from_iter_values(values().into_iter().map(f16::from_f32))) };
    let f64s = || -> ArrayRef { Arc::new(Float64Array::from_iter_values(values().into_iter().map(f64::from))) };
    let rows = |values| lists(values, [WIDTH; ROWS]);
    let even = || [10; ROWS / 10];
    let cases: Vec<(&str, ArrayRef)> = vec![
        ("even", lists(rows(f32s()), even())),
        ("ragged", lists(rows(f32s()), SEQUENCES)),
        ("fixed rows", lists(fixed(f32s()), SEQUENCES)),
        ("f16", lists(rows(f16s()), SEQUENCES)),
        ("f64", lists(rows(f64s()), SEQUENCES)),
        ("binary", lists(binary(), SEQUENCES)),
        ("in structs", wrap("a", lists(wrap("b", rows(f32s())), SEQUENCES))),
        ("three deep", lists(lists(rows(f32s()), SEQUENCES), [2, 0, 4, 3])),
    ];
    // Row groups of two records: some have no row at all.
    for (name, array) in cases {
        for (how, properties) in [
            ("", groups()),
            (", plain", plain()),
            (", without statistics", no_statistics()),
            (", zstd", groups().set_compression(Compression::ZSTD(ZstdLevel::default()))),
            (", small pages", plain().set_data_page_size_limit(60).set_write_batch_size(3)),
        ] {
            let (folder, url) = folder();
            let properties = properties.set_max_row_group_row_count(Some(2));
            file(&folder.path().join("a.parquet"), vec![("activation", array.clone(), true)], properties);
            let dataset = open(&url);
            assert_eq!((dataset.rows(), dataset.width()), (ROWS as u64, WIDTH), "{name}{how}");
            check(&url, &values(), &format!("{name}{how}"));
        }
    }
}

#[test]
fn what_nested_lists_may_not_be_is_said() {
    let (folder, url) = folder();
    let path = folder.path().join("a.parquet");
    let ragged = lists(lists(f32s(), (0..ROWS).map(|r| WIDTH - 1 + 2 * (r % 2))), [10; ROWS / 10]);
    file(&path, vec![("activation", ragged, false)], plain());
    let says = refusal(&url);
    assert!(says.contains("row group 0") && says.contains("every row needs the same width"), "{says}");
    let null = ListArray::try_new(
        field(&fixed(f32s())),
        OffsetBuffer::from_lengths([10; ROWS / 10]),
        fixed(f32s()),
        Some((0..ROWS / 10).map(|i| i != 2).collect()),
    );
    file(&path, vec![("activation", Arc::new(null.unwrap()), true)], plain());
    let says = refusal(&url);
    assert!(says.contains("row group 0: null values"), "{says}");
}

#[test]
fn token_columns_go_along_with_nested_lists() {
    let nested = |values: ArrayRef| lists(lists(values, SEQUENCES), [2, 0, 4, 3]);
    let pos = || -> ArrayRef { Arc::new(Int16Array::from_iter_values(SEQUENCES.iter().flat_map(|&n| 0..n as i16))) };
    let is_first = |row: usize| {
        let mut starts = SEQUENCES.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        });
        row == 0 || starts.any(|start| start == row)
    };
    let expected = without(is_first);
    assert_eq!(expected.len(), (ROWS - 5) * WIDTH);
    let write = |columns| {
        let (folder, url) = folder();
        file(&folder.path().join("a.parquet"), columns, groups().set_max_row_group_row_count(Some(2)));
        (folder, url)
    };
    let columns = vec![("activation", lists(fixed(f32s()), SEQUENCES), true), ("pos", lists(pos(), SEQUENCES), true)];
    let (_folder, url) = write(columns);
    assert_eq!(filtered(&url, "pos", &[0]), expected);
    let (_folder, url) = write(vec![("activation", nested(fixed(f32s())), true), ("pos", nested(pos()), true)]);
    assert_eq!(filtered(&url, "pos", &[0]), expected);
    // As many values in other lists would go to other rows.
    let moved = [7, 0, 13, 0, 0, 20, 1, 0, 19];
    let columns = vec![("activation", lists(fixed(f32s()), SEQUENCES), true), ("pos", lists(pos(), moved), true)];
    let (_folder, url) = write(columns);
    let says = filter_refusal(&url);
    assert!(says.ends_with("row group 0: column pos: list 0 has 7 values, and 0 rows of activations"), "{says}");
    let each: ArrayRef = Arc::new(Int32Array::from(vec![0; SEQUENCES.len()]));
    let (_folder, url) = write(vec![("activation", lists(fixed(f32s()), SEQUENCES), true), ("pos", each, true)]);
    let says = filter_refusal(&url);
    assert!(says.contains("column pos has integers not in lists, and the rows of activations are in lists"), "{says}");
}

/// What starting a stream with a filter on `pos` says, or reading its first batch.
fn filter_refusal(url: &str) -> String {
    let dataset = open(url);
    let filter = RowFilter { positions: vec![0], ..RowFilter::default() };
    let options = StreamOptions { filter, ..StreamOptions::default() };
    let error = Stream::start(&dataset, options, Cursor::default())
        .and_then(|mut stream| stream.next(&mut vec![0; stream.max_rows() * dataset.row_bytes()]));
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error}");
    error.to_string()
}

#[test]
fn integers_of_every_type_serve_filters() {
    let numbers = || (0..ROWS).map(|i| i % 9);
    let arrays: [ArrayRef; 8] = [
        Arc::new(Int8Array::from_iter_values(numbers().map(|n| n as i8))),
        Arc::new(Int16Array::from_iter_values(numbers().map(|n| n as i16))),
        Arc::new(Int32Array::from_iter_values(numbers().map(|n| n as i32))),
        Arc::new(Int64Array::from_iter_values(numbers().map(|n| n as i64))),
        Arc::new(UInt8Array::from_iter_values(numbers().map(|n| n as u8))),
        Arc::new(UInt16Array::from_iter_values(numbers().map(|n| n as u16))),
        Arc::new(UInt32Array::from_iter_values(numbers().map(|n| n as u32))),
        Arc::new(UInt64Array::from_iter_values(numbers().map(|n| n as u64))),
    ];
    for name in ["pos", "token_id"] {
        for array in &arrays {
            for properties in [groups(), plain().set_compression(Compression::SNAPPY)] {
                let (folder, url) = folder();
                let columns = vec![("activation", fixed(f32s()), false), (name, array.clone(), true)];
                file(&folder.path().join("a.parquet"), columns, properties);
                let what = format!("{name} {}", array.data_type());
                assert_eq!(filtered(&url, name, &[0, 4]), without(|row| [0, 4].contains(&(row % 9))), "{what}");
            }
        }
    }
    // Numbers that an i32 does not hold are no others: these would be -1, 0 and 0 if they were cut.
    let huge = (0..ROWS as u64).map(|i| [u64::MAX, 1 << 32, 1 << 63, 3][i as usize % 4]);
    let (folder, url) = folder();
    let huge: ArrayRef = Arc::new(UInt64Array::from_iter_values(huge));
    file(&folder.path().join("a.parquet"), vec![("activation", fixed(f32s()), false), ("pos", huge, false)], plain());
    assert_eq!(filtered(&url, "pos", &[-1, 0, i32::MAX]), values());
    assert_eq!(filtered(&url, "pos", &[3]), without(|row| row % 4 == 3));
}

#[test]
fn the_columns_of_filters_are_looked_at_in_all_shards_at_once() {
    let pos: ArrayRef = Arc::new(Int32Array::from_iter_values((0..ROWS as i32).map(|i| i % 9)));
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.0; ROWS]));
    let nulls: ArrayRef = Arc::new(Int32Array::from_iter((0..ROWS as i32).map(|i| (i != 30).then_some(i))));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["1"; ROWS]));
    let cases: [(Option<ArrayRef>, &str); 4] = [
        (None, "s3.parquet: has no column pos, which the row filter needs"),
        (Some(doubles), "s3.parquet: column pos is DOUBLE: integers are needed (the row filter needs the column)"),
        (
            Some(text),
            "s3.parquet: column pos is BYTE_ARRAY (String): integers are needed (the row filter needs the column)",
        ),
        (
            Some(nulls),
            "s3.parquet: row group 1: column pos: 1 null values: every row needs one (the row filter needs the column)",
        ),
    ];
    for (last, says) in cases {
        let (folder, url) = folder();
        for shard in 0..4 {
            let pos = if shard == 3 { last.clone() } else { Some(pos.clone()) };
            let rows = values().into_iter().map(|v| v + shard as f32);
            let rows = fixed(Arc::new(Float32Array::from_iter_values(rows)));
            let mut columns = vec![("activation", rows, false)];
            columns.extend(pos.map(|pos| ("pos", pos, true)));
            file(&folder.path().join(format!("s{shard}.parquet")), columns, plain());
        }
        let filter = RowFilter { positions: vec![0], ..RowFilter::default() };
        let options = StreamOptions { filter: filter.clone(), batch: 8, ..StreamOptions::default() };
        let start = |options: &StreamOptions| Stream::start(&open(&url), options.clone(), Cursor::default());
        let error = start(&options).map(drop).unwrap_err();
        assert!(error.to_string().ends_with(says) && matches!(error, Error::Data { .. }), "{error}");
        assert!(loader::sample(&open(&url), 10, 0, &SkipList::default(), &filter).is_err());
        let report = inspect(std::slice::from_ref(&url), InspectOptions { write_manifest: true, ..Default::default() });
        let columns = report.unwrap().token_columns;
        assert_eq!((columns.len(), columns[0].name.as_str(), columns[0].shards), (1, "pos", 3));
        assert!(columns[0].problem.as_ref().unwrap().starts_with("s3.parquet: "), "{columns:?}");
        // A manifest that spares the footers does not spare this.
        assert!(open(&url).has_manifest());
        assert!(start(&options).map(drop).unwrap_err().to_string().ends_with(says));
        // A run that leaves the shard out needs nothing of it.
        let mut skip = SkipList::default();
        (0..3).for_each(|group| skip.add_row_group(3, group));
        start(&StreamOptions { skip, ..options }).map(drop).unwrap();
    }
}

#[test]
fn float64_becomes_float32() {
    let exact = |v: f32| f64::from(v) + 1e-9;
    let doubles = || -> ArrayRef { Arc::new(Float64Array::from_iter_values(values().into_iter().map(exact))) };
    let bytes: Vec<u8> = values().iter().flat_map(|v| exact(*v).to_le_bytes()).collect();
    let binary: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(bytes.chunks(8 * WIDTH)).unwrap());
    let dtype = KeyValue::new("sae.dtype".into(), "f64".to_string());
    for (array, codec) in [fixed(doubles()), lists(doubles(), [WIDTH; ROWS]), binary]
        .into_iter()
        .flat_map(|array| codecs().map(|codec| (array.clone(), codec)))
    {
        let (folder, url) = folder();
        let properties = groups().set_compression(codec).set_key_value_metadata(Some(vec![dtype.clone()]));
        file(&folder.path().join("a.parquet"), vec![("activation", array.clone(), false)], properties);
        assert_eq!(open(&url).dtype(), Dtype::F32);
        let narrowed: Vec<f32> = values().into_iter().map(|v| exact(v) as f32).collect();
        check(&url, &narrowed, &format!("{} {codec:?}", array.data_type()));
    }
    // What float32 does not hold is infinite and counted as such; NaN stays NaN.
    let (folder, url) = folder();
    let numbers = [1.0, 1e39, -1e300, f64::NAN, 1e-300, 3.0].repeat(ROWS);
    let array = fixed(Arc::new(Float64Array::from(numbers)));
    file(&folder.path().join("a.parquet"), vec![("activation", array, false)], plain());
    let told = warnings();
    let dataset = open(&url);
    let row = rows_of(&dataset)[..6].to_vec();
    loader::sample(&dataset, 10, 0, &SkipList::default(), &RowFilter::default()).unwrap();
    let told: Vec<String> =
        told.lock().unwrap().iter().filter(|w| w.contains(&url) || w.contains("a.parquet")).cloned().collect();
    let count = |what: &str| told.iter().filter(|warning| warning.contains(what)).count();
    assert_eq!(count(&format!("{url}: numbers are stored as float64 and are rounded to float32")), 1, "{told:?}");
    // It is said once, of the row group that was decoded first.
    assert_eq!(count(": 1e39 is more than float32 holds and becomes infinite"), 1, "{told:?}");
    assert_eq!((row[0], row[1], row[2], row[4], row[5]), (1.0, f32::INFINITY, f32::NEG_INFINITY, 0.0, 3.0));
    assert!(row[3].is_nan());
    assert_eq!(inspect(&[url], InspectOptions::default()).unwrap().non_finite, ROWS as u64);
}

/// Warnings of this process, from now on.
fn warnings() -> Arc<Mutex<Vec<String>>> {
    struct Listener(Arc<Mutex<Vec<String>>>);
    struct Text(String);
    impl Visit for Text {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    impl tracing::Subscriber for Listener {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    let told = Arc::new(Mutex::default());
    // Shards are read by threads of the loader.
    tracing::subscriber::set_global_default(Listener(Arc::clone(&told))).unwrap();
    told
}

#[test]
fn every_codec_is_read() {
    for codec in codecs() {
        for array in [binary(), fixed(f32s())] {
            let (folder, url) = folder();
            file(&folder.path().join("a.parquet"), vec![("activation", array, false)], plain().set_compression(codec));
            check(&url, &values(), &format!("{codec:?}"));
        }
    }
}

#[test]
fn another_column_beside_changes_no_choice() {
    let columns = |more: Vec<(&'static str, ArrayRef)>| {
        let (folder, url) = folder();
        let mut columns = vec![("x", fixed(f32s()), false)];
        columns.extend(more.into_iter().map(|(name, array)| (name, array, true)));
        file(&folder.path().join("a.parquet"), columns, plain());
        (folder, url)
    };
    let doubles = || lists(Arc::new(Float64Array::from(vec![1.0; ROWS])), [1; ROWS]);
    let nested = || lists(lists(f32s(), [WIDTH; ROWS]), [1; ROWS]);
    let (_folder, url) = columns(vec![("scores", doubles()), ("logits", nested())]);
    assert_eq!(rows_of(&open(&url)), values(), "the only simple one, as before");
    let (_folder, url) = columns(vec![("activation", doubles())]);
    assert_eq!(rows_of(&open(&url)), vec![1.0; ROWS], "the one of that name");
}

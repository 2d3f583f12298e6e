//! Data sets that several processes write in parts: exactly once, whatever becomes of them, and the same bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use loader::parts::{Marker, Parts, Plan, Worker, shard_name};
use loader::{
    COLUMN, ColumnType, ColumnValues, Dataset, Dtype, Error, ExtraColumn, Manifest, OpenOptions, Source, Store,
    WriteOptions,
};
use serde_json::{Value, json};

const WIDTH: usize = 8;
const ROWS: u64 = 300;
const PARTS: u64 = 7;

fn columns() -> Vec<ExtraColumn> {
    let of = |name: &str, kind| ExtraColumn::new(name, kind);
    vec![
        of("context_id", ColumnType::U64),
        of("pos", ColumnType::I32),
        of("signed", ColumnType::I64),
        of("small", ColumnType::U32),
        of("loss", ColumnType::F32),
        of("weight", ColumnType::F64),
        of("word", ColumnType::Text),
    ]
}

fn plan(seed: u64) -> Plan {
    let bytes = WIDTH * 4;
    let options = WriteOptions {
        columns: columns(),
        page_bytes: 10 * bytes,
        row_group_bytes: 100 * bytes,
        ..WriteOptions::new(WIDTH, Dtype::F32)
    };
    let what = json!({ "command": "test", "seed": seed, "sources": [{ "path": "a", "size": 7 }] });
    let folders = [("layer-1", options.clone()), ("layer-2", options)].map(|(name, o)| (name.to_string(), o)).into();
    Plan { what: what.as_object().unwrap().clone(), folders }
}

fn make(parts: &Parts, part: u64) {
    let mut marker = Marker::default().with_note(json!({ "last": part + 1 == PARTS }));
    for (folder, add) in [("layer-1", 0), ("layer-2", 1_000_000)] {
        let mut writer = parts.shard(folder, part).unwrap();
        for from in [0, 250] {
            let ids: Vec<u64> = (from..if from == 0 { 250 } else { ROWS }).map(|i| part * ROWS + i + add).collect();
            let rows: Vec<u8> =
                ids.iter().flat_map(|&id| (0..WIDTH).flat_map(move |_| (id as f32).to_le_bytes())).collect();
            let of: [ColumnValues<'_>; 7] = [
                ids.iter().map(|id| id << 33).collect::<Vec<u64>>().into(),
                ids.iter().map(|&id| id as i32).collect::<Vec<i32>>().into(),
                ids.iter().map(|&id| -(id as i64)).collect::<Vec<i64>>().into(),
                ids.iter().map(|&id| u32::MAX - id as u32).collect::<Vec<u32>>().into(),
                ids.iter().map(|&id| id as f32 / 3.0).collect::<Vec<f32>>().into(),
                ids.iter().map(|&id| id as f64 / 7.0).collect::<Vec<f64>>().into(),
                ids.iter().map(|id| format!("w{id}")).collect::<Vec<String>>().into(),
            ];
            writer.write(&rows, &of).unwrap();
        }
        assert_eq!(writer.rows(), ROWS);
        marker = marker.with_shard(folder, writer.finish().unwrap());
    }
    parts.commit(part, &marker).unwrap();
}

fn source(folder: &str) -> Option<Source> {
    json!({ "model": "a", "layer": folder.trim_start_matches("layer-") }).as_object().cloned()
}

fn files(store: &Store) -> BTreeMap<String, Vec<u8>> {
    store.list("").unwrap().into_iter().map(|e| (e.key.clone(), store.get(&e.key).unwrap().to_vec())).collect()
}

fn temporary() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("out").to_str().unwrap()).unwrap();
    (folder, store)
}

fn whole(workers: u64, order: impl Fn(Vec<u64>) -> Vec<u64>) -> (tempfile::TempDir, Store, Vec<Manifest>) {
    let (folder, store) = temporary();
    for index in 0..workers {
        let parts = Parts::open(&store, &plan(1)).unwrap();
        order(parts.left(Worker::new(index, workers).unwrap(), PARTS).unwrap())
            .into_iter()
            .for_each(|part| make(&parts, part));
    }
    let manifests = Parts::open(&store, &plan(1)).unwrap().finish(PARTS, source).unwrap();
    (folder, store, manifests)
}

#[test]
fn any_number_of_workers_in_any_order_writes_the_same_bytes() {
    let (_one, one, manifests) = whole(1, |parts| parts);
    let (_three, three, _) = whole(3, |mut parts| {
        parts.reverse();
        parts
    });
    let names = files(&one).into_keys().collect::<Vec<_>>();
    assert_eq!(names.len() as u64, 3 * PARTS + 3, "{names:?}");
    assert!(files(&one) == files(&three));
    assert_eq!(manifests.iter().map(Manifest::rows).collect::<Vec<_>>(), [PARTS * ROWS; 2]);

    // What is complete takes no further work, and a part that is made twice changes nothing.
    let parts = Parts::open(&one, &plan(1)).unwrap();
    assert!(parts.left(Worker::alone(), PARTS).unwrap().is_empty());
    make(&parts, 2);
    parts.finish(PARTS, source).unwrap();
    assert!(files(&one) == files(&three));
}

#[test]
fn the_rows_and_columns_of_parts_are_a_data_set() {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
    let (_folder, store, _) = whole(1, |parts| parts);
    let dataset = Dataset::open(&[store.url_of("layer-2")], &OpenOptions::default()).unwrap();
    assert_eq!((dataset.rows(), dataset.width(), dataset.column()), (PARTS * ROWS, WIDTH, Some(COLUMN)));
    assert!(dataset.has_manifest());
    assert_eq!(dataset.manifest().source.unwrap()["layer"], "2");
    for part in 0..PARTS {
        let bytes = store.get(&format!("layer-1/{}", shard_name(part))).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes, 1000).unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64, ROWS);
        let ids: Vec<u64> = (part * ROWS..(part + 1) * ROWS).collect();
        let mut at = 0;
        for batch in &batches {
            let ids = &ids[at..at + batch.num_rows()];
            at += batch.num_rows();
            let column = |name: &str| batch.column_by_name(name).unwrap();
            for (i, &id) in ids.iter().enumerate() {
                assert_eq!(column(COLUMN).as_fixed_size_binary().value(i)[..4], (id as f32).to_le_bytes());
                assert_eq!(column("context_id").as_primitive::<UInt64Type>().value(i), id << 33);
                assert_eq!(column("pos").as_primitive::<Int32Type>().value(i), id as i32);
                assert_eq!(column("signed").as_primitive::<Int64Type>().value(i), -(id as i64));
                assert_eq!(column("small").as_primitive::<UInt32Type>().value(i), u32::MAX - id as u32);
                assert_eq!(column("loss").as_primitive::<Float32Type>().value(i), id as f32 / 3.0);
                assert_eq!(column("weight").as_primitive::<Float64Type>().value(i), id as f64 / 7.0);
                assert_eq!(column("word").as_string::<i32>().value(i), format!("w{id}"));
            }
        }
    }
}

#[test]
fn what_a_source_says_stays_bounded_and_out_of_the_identity() {
    let (_folder, store, manifests) = whole(1, |parts| parts);
    let mut other = manifests[0].clone();
    other.source = None;
    assert_eq!(Manifest::from_json(&other.to_json(), "x").unwrap().identity(), manifests[0].identity());
    // Only what all shards have in common is said of all.
    let both = Dataset::open(&[store.url_of("layer-1"), store.url_of("layer-2")], &OpenOptions::default()).unwrap();
    assert_eq!(both.rows_source(), json!({ "model": "a" }).as_object());
    other.source = json!({ "model": "x".repeat(70_000) }).as_object().cloned();
    let refused = Manifest::from_json(&other.to_json(), "x").unwrap_err().to_string();
    assert!(refused.contains("source of 70012 bytes"), "{refused}");
}

fn refused(result: loader::Result<impl Sized>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn another_plan_is_refused_with_its_difference() {
    // One of which nothing was committed may be corrected.
    let (_folder, store) = temporary();
    Parts::open(&store, &plan(2)).unwrap();
    Parts::open(&store, &plan(1)).unwrap();
    let (_folder, store, _) = whole(1, |parts| parts);
    let error = refused(Parts::open(&store, &plan(2)));
    assert!(error.contains("other options or data (seed: 1 there, 2 here): go on with those"), "{error}");
    let mut wider = plan(1);
    wider.folders.values_mut().for_each(|options| options.width = 9);
    let error = refused(Parts::open(&store, &wider));
    assert!(error.contains("data (width: 8 there, 9 here)"), "once for both folders: {error}");
    let mut sources = plan(1);
    sources.what["sources"][0]["size"] = 8.into();
    assert!(refused(Parts::open(&store, &sources)).contains("(sources 1 size: 7 there, 8 here)"));
    // What is whole stays so without its markers: the manifests are there.
    for part in 0..PARTS {
        store.delete(&format!("parts/{part:06}.json")).unwrap();
    }
    assert!(refused(Parts::open(&store, &plan(2))).contains("seed: 1 there, 2 here"));
    assert!(Parts::open(&store, &plan(1)).unwrap().numbers().unwrap().is_empty());
    store.put("parts/plan.json", &b"{"[..]).unwrap();
    assert!(matches!(Parts::open(&store, &plan(1)), Err(Error::Data { .. })));
}

#[test]
fn a_folder_with_other_shards_is_refused() {
    for name in ["other.parquet", "below/x.pq", "manifest.json"] {
        let (_folder, store) = temporary();
        store.put(name, &b"x"[..]).unwrap();
        let error = refused(Parts::open(&store, &plan(1)));
        assert!(error.contains("already holds shards"), "{name}: {error}");
        assert_eq!(store.list("").unwrap().len(), 1, "nothing is written");
    }
}

#[test]
fn only_what_is_whole_is_finished() {
    let (_folder, store, _) = whole(2, |parts| parts);
    let open = || Parts::open(&store, &plan(1)).unwrap();
    // A shard that is gone, or another.
    let (shard, marker) = ("layer-1/shard-000003.parquet", "parts/000003.json");
    let (bytes, json) = (store.get(shard).unwrap(), store.get(marker).unwrap());
    store.delete(shard).unwrap();
    let last = "layer-1/shard-000005.parquet";
    let of_last = store.get(last).unwrap();
    store.delete(last).unwrap();
    let error = refused(open().finish(PARTS, source));
    let both = format!("{marker}, parts/000005.json");
    assert!(error.contains("is gone") && error.contains(&both), "{error}");
    store.put(last, of_last).unwrap();
    store.put(shard, bytes.slice(1..)).unwrap();
    assert!(refused(open().finish(PARTS, source)).contains("bytes, and its part"));
    store.put(shard, bytes).unwrap();
    // Markers that are damaged, of another part or plan, of other shards.
    let edited = |edit: fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&json).unwrap();
        edit(&mut value);
        value.to_string().into_bytes()
    };
    let damaged = [
        json[..json.len() / 2].to_vec(),
        edited(|v| v["part"] = 4.into()),
        edited(|v| v["plan"] = "0".into()),
        edited(|v| v["shards"]["layer-1"]["path"] = "../../x.parquet".into()),
        edited(|v| drop(v["shards"].as_object_mut().unwrap().remove("layer-1"))),
    ];
    for bytes in damaged {
        store.put(marker, bytes).unwrap();
        let error = refused(open().committed());
        assert!(error.contains(marker) && error.contains("delete it and run again"), "{error}");
    }
    // Rows that do not add up are found before a manifest is written.
    store.put(marker, edited(|v| v["shards"]["layer-1"]["rows"] = 1.into())).unwrap();
    assert!(matches!(open().finish(PARTS, source), Err(Error::Data { .. })));
    // Its part is then made again.
    store.delete(marker).unwrap();
    assert_eq!(open().left(Worker::alone(), PARTS).unwrap(), [3]);
    assert!(refused(open().finish(PARTS, source)).contains("part 3 of 7 is not there yet"));
    make(&open(), 3);
    assert!(refused(open().finish(PARTS - 1, source)).contains("beyond the last"));
    open().finish(PARTS, source).unwrap();
    // Other files in the folder of markers are none.
    store.put("parts/3.json", &b"x"[..]).unwrap();
    store.put("parts/note.txt", &b"x"[..]).unwrap();
    assert_eq!(open().committed().unwrap().len() as u64, PARTS);
}

#[test]
fn a_part_without_rows_and_one_without_shards() {
    let (_folder, store) = temporary();
    let only = |rows: &[u64]| {
        let folders = BTreeMap::from([(String::new(), WriteOptions::new(4, Dtype::F16))]);
        let parts = Parts::open(&store, &Plan { what: Default::default(), folders }).unwrap();
        for (part, &rows) in rows.iter().enumerate() {
            let mut writer = parts.shard("", part as u64).unwrap();
            writer.write(&vec![1; rows as usize * 8], &[]).unwrap();
            parts.commit(part as u64, &Marker::default().with_shard("", writer.finish().unwrap())).unwrap();
        }
        assert!(matches!(parts.shard("x", 0), Err(Error::Arguments(_))));
        assert!(matches!(parts.commit(9, &Marker::default()), Err(Error::Arguments(_))));
        parts.finish(rows.len() as u64, |_| None).unwrap()
    };
    assert_eq!(only(&[0, 5, 0])[0].rows(), 5);
    assert_eq!(Dataset::open(&[store.url().to_string()], &OpenOptions::default()).unwrap().rows(), 5);

    let (_folder, store) = temporary();
    let parts = Parts::open(&store, &Plan { what: Default::default(), folders: BTreeMap::new() }).unwrap();
    parts.commit(0, &Marker::default().with_note(json!(7))).unwrap();
    assert_eq!(parts.committed().unwrap()[&0].note, 7);
    assert!(parts.finish(1, |_| None).unwrap().is_empty());
}

#[test]
fn workers_are_numbered_from_zero() {
    let worker: Worker = "2/5".parse().unwrap();
    assert_eq!((worker.index(), worker.count(), worker.to_string()), (2, 5, "2/5".into()));
    assert_eq!((0..12).filter(|&part| worker.does(part)).collect::<Vec<_>>(), [2, 7]);
    for text in ["5/5", "1", "a/2", "0/0", "-1/3", "1/2/3"] {
        assert!(matches!(text.parse::<Worker>(), Err(Error::Arguments(_))), "{text}");
    }
}

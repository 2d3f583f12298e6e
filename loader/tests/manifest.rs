//! What a manifest changes: identity, verification and the bytes read; never the order of rows.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;

use common::{drain, ids, memory, open, write};
use loader::{
    Cursor, Dataset, Dtype, Error, Help, InspectOptions, ManifestState, OpenOptions, Order, RowFilter, SkipList,
    Stream, StreamOptions, inspect, sample,
};

fn inspected(url: &str) -> loader::Inspection {
    inspect(&[url.to_string()], InspectOptions { write_manifest: true, ..InspectOptions::default() }).unwrap()
}

#[test]
fn the_order_does_not_depend_on_a_manifest() {
    let url = memory();
    // Row groups of 8 MB, so that a manifest cuts them and sampling reads parts.
    let store = write(&url, 2500, 1300, 4096, Dtype::F32);
    let all = |dataset: &Dataset| {
        let direct = Order::Direct { window_bytes: 16 << 20 };
        [direct, Order::Striped].map(|order| {
            let options = StreamOptions { order, batch: 256, seed: 5, ..StreamOptions::default() };
            ids(&drain(dataset, &options, Cursor::default()))
        })
    };
    let some = |dataset: &Dataset| {
        let rows = sample(dataset, 300, 9, &SkipList::default(), &RowFilter::default()).unwrap();
        rows.rows.chunks(4096).map(|r| r[0].to_bits()).collect::<Vec<_>>()
    };
    let with = open(&url);
    store.delete("manifest.json").unwrap();
    let without = open(&url);
    assert_ne!(with.identity(), without.identity());
    assert_eq!(all(&with), all(&without));
    assert_eq!(some(&with), some(&without));
    let report = inspected(&url);
    assert_eq!(report.manifest, ManifestState::Written);
    assert_eq!(report.identity, open(&url).identity(), "what inspect prints is what a run will have");
    assert_eq!(inspected(&url).identity, report.identity);
}

#[test]
fn a_cached_manifest_keeps_the_identity_and_notices_changes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let url = data.to_str().unwrap().to_string();
    write(&url, 2000, 1000, 16, Dtype::F16).delete("manifest.json").unwrap();
    let options = StreamOptions { order: Order::Sequential, batch: 100, ..StreamOptions::default() };
    let first = open(&url);
    drain(&first, &options, Cursor::default());
    let cached = folder.path().join("run/manifest-train.json");
    let open_again =
        |manifest: &std::path::Path| OpenOptions { manifest: Some(manifest.to_str().unwrap().into()), column: None };
    let again = || Dataset::open(std::slice::from_ref(&url), &open_again(&cached));
    assert_eq!(again().unwrap().identity(), first.identity(), "an absent one changes nothing");
    std::fs::create_dir(cached.parent().unwrap()).unwrap();
    std::fs::write(&cached, "{").unwrap();
    let damaged = again().unwrap_err();
    assert!(matches!(damaged, Error::Data { .. }) && damaged.to_string().contains("delete it"), "{damaged}");
    std::fs::write(&cached, first.manifest().to_json()).unwrap();
    assert_eq!(inspected(&url).manifest, ManifestState::Written);
    assert_ne!(open(&url).identity(), first.identity());
    let second = again().unwrap();
    assert_eq!(second.identity(), first.identity(), "it wins over the manifest beside the data");
    let cursor = Stream::start(&first, options.clone(), Cursor::default()).unwrap().cursor();
    assert_eq!(ids(&drain(&second, &options, cursor)).len(), 2000);

    std::fs::remove_file(data.join("manifest.json")).unwrap();
    let group = first.shards()[1].row_groups[1].clone();
    let file = std::fs::OpenOptions::new().write(true).open(data.join("shard-00001.parquet")).unwrap();
    file.write_all_at(&[0x55], group.offset + 200).unwrap();
    let mut stream = Stream::start(&again().unwrap(), options, Cursor::default()).unwrap();
    let mut buffer = vec![0; 3200];
    let error = loop {
        if let Err(e) = stream.next(&mut buffer) {
            break e;
        }
    };
    assert!(error.to_string().contains("shard-00001.parquet, row group 1: changed"), "{error}");
    let entry = "shard-00001.parquet#1";
    assert!(matches!(error, Error::Changed { help: Some(Help::Skip(named)), .. } if named == entry));

    let refused = |says: &str| {
        let error = again().unwrap_err();
        assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains(says), "{error}");
    };
    std::fs::copy(data.join("shard-00000.parquet"), data.join("shard-00002.parquet")).unwrap();
    refused("shard-00002.parquet: changed since the run read it: the file is new");
    std::fs::remove_file(data.join("shard-00002.parquet")).unwrap();
    std::fs::rename(data.join("shard-00000.parquet"), folder.path().join("kept")).unwrap();
    refused("shard-00000.parquet: changed since the run read it: the file is gone");
    std::fs::rename(folder.path().join("kept"), data.join("shard-00000.parquet")).unwrap();
    file.set_len(100).unwrap();
    refused("100 bytes now");
}

#[test]
fn a_damaged_manifest_is_not_taken_for_none() {
    let url = memory();
    let store = write(&url, 1000, 1000, 16, Dtype::F16);
    let json = String::from_utf8(store.get("manifest.json").unwrap().to_vec()).unwrap();
    let tried = |json: String| {
        store.put("manifest.json", json).unwrap();
        Dataset::open(std::slice::from_ref(&url), &OpenOptions::default())
    };
    for bad in [
        json[..json.len() / 2].to_string(),
        String::new(),
        json.replace("\"format\"", "\"farmat\""),
        json.replace("sae-shards", "sae-shardz"),
        json.replace("\"rows\":1000", "\"rows\":1001"),
    ] {
        let error = tried(bad).unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "{error}");
        let remedy = "bring the earlier file back, or delete manifest.json beside the data and run `sae inspect`";
        assert!(error.to_string().contains("/manifest.json: ") && error.to_string().contains(remedy), "{error}");
    }
    let foreign = "{\"format\": 3, \"files\": []}";
    assert!(!tried(foreign.into()).unwrap().has_manifest());
    assert_eq!(inspected(&url).manifest, ManifestState::Foreign);
    assert_eq!(&store.get("manifest.json").unwrap()[..], foreign.as_bytes(), "another program's stays as it is");
}

#[test]
fn inspection_says_what_it_verified() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().to_string();
    write(&url, 2000, 1000, 16, Dtype::F16);
    let all = inspected(&url);
    let bytes: u64 = open(&url).shards().iter().flat_map(|s| &s.row_groups).map(|g| g.length).sum();
    assert_eq!((all.manifest, all.verified_bytes, all.bytes), (ManifestState::Verified, bytes, bytes));
    assert_eq!((all.row_groups, all.verified_row_groups), (6, 6));

    let options = || InspectOptions { sample: Some(600), ..InspectOptions::default() };
    let part = inspect(std::slice::from_ref(&url), options()).unwrap();
    assert_eq!((part.manifest, part.verified_row_groups), (ManifestState::PartlyVerified, 2));
    assert!(0 < part.verified_bytes && part.verified_bytes < bytes);

    let group = open(&url).shards()[0].row_groups[1].clone();
    let path = folder.path().join("shard-00000.parquet");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55], group.offset + 200).unwrap();
    let damaged = inspected(&url);
    assert_eq!((damaged.manifest, damaged.verified_row_groups), (ManifestState::Mismatched, 5));
    assert_eq!(damaged.verified_bytes, bytes - group.length);
    assert!(matches!(&damaged.mismatches[..], [one] if one.contains("shard-00000.parquet, row group 1")));
    assert_eq!(damaged.mismatches[0].matches("fetch or make the file again").count(), 1, "{:?}", damaged.mismatches);

    std::fs::remove_file(folder.path().join("manifest.json")).unwrap();
    let none = inspect(std::slice::from_ref(&url), options()).unwrap();
    assert_eq!((none.manifest, none.verified_bytes, none.verified_row_groups), (ManifestState::Absent, 0, 0));
}

#[test]
fn a_single_file_of_another_size_than_its_manifest_says_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().to_str().unwrap(), 2000, 1000, 16, Dtype::F16);
    let name = |n: u32| folder.path().join(format!("shard-0000{n}.parquet"));
    // A whole Parquet file, of fewer rows.
    let other = tempfile::tempdir().unwrap();
    write(other.path().to_str().unwrap(), 700, 1000, 16, Dtype::F16);
    std::fs::copy(other.path().join("shard-00000.parquet"), name(0)).unwrap();
    let error = Dataset::open(&[name(0).to_str().unwrap().into()], &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains("the manifest says"), "{error}");
    assert_eq!(open(name(1).to_str().unwrap()).rows(), 1000, "the others are as they were");
}

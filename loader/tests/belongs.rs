//! What belongs to a data set: one rule for folders as writers leave them, the same on every store.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use common::{memory, open, write};
use loader::{Dataset, Dtype, Error, InspectOptions, Manifest, ManifestState, OpenOptions, Shard, Store, Why, inspect};
use parquet::arrow::ArrowWriter;

const WIDTH: usize = 16;

/// A shard of this many rows, as a writer leaves it.
fn shard(rows: u64) -> Bytes {
    write(&memory(), rows, rows, WIDTH, Dtype::F16).get("shard-00000.parquet").unwrap()
}

/// A shard with a column of this name.
fn with_column(name: &str) -> Bytes {
    let numbers: Float32Array = (0..40 * WIDTH).map(|i| i as f32).collect();
    let field = Arc::new(Field::new("item", DataType::Float32, false));
    let lists = FixedSizeListArray::new(field, WIDTH as i32, Arc::new(numbers), None);
    let batch = RecordBatch::try_from_iter([(name, Arc::new(lists) as ArrayRef)]).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file.into()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

fn tried(urls: &[&str]) -> loader::Result<Dataset> {
    let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
    Dataset::open(&urls, &OpenOptions::default())
}

/// Refused as data that cannot be used, in words that hold all of `parts`.
#[track_caller]
fn refused(urls: &[&str], parts: &[&str]) {
    let error = tried(urls).unwrap_err();
    let is_data = matches!(error, Error::NotFound { .. } | Error::Data { .. } | Error::Changed { .. });
    assert!(is_data && parts.iter().all(|part| error.to_string().contains(part)), "{parts:?}: {error}");
}

fn paths(dataset: &Dataset) -> Vec<&str> {
    dataset.shards().iter().map(|shard| shard.path.as_str()).collect()
}

/// Left-out paths below `url`, by reason.
fn left_out(dataset: &Dataset, url: &str) -> Vec<(Why, usize, Vec<String>)> {
    let below = |path: &String| path.strip_prefix(&format!("{url}/")).unwrap().to_string();
    let left_out = dataset.contents().left_out;
    left_out.iter().map(|l| (l.why, l.count, l.first.iter().map(below).collect())).collect()
}

fn strings(paths: &[&str]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn report(url: &str) -> loader::Inspection {
    inspect(&[url.to_string()], InspectOptions { write_manifest: true, ..InspectOptions::default() }).unwrap()
}

#[test]
fn one_rule_on_every_store() {
    let folder = tempfile::tempdir().unwrap();
    let shards =
        ["_doc=7/part-0.gz.parquet", "a.PARQUET", "b.pq", "layer=1/a.parquet", "layer=1/b.Pq", "x_/y.z/a.parquet"];
    let hidden = [
        "._a.parquet",
        ".a.parquet",
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "_common_metadata",
        "_delta_log/00000000000000000010.checkpoint.parquet",
        "_temporary/0/_temporary/attempt_2026_m_000001_0/part-1.parquet",
        "layer=1/.b.parquet.crc",
        "layer=1/_b.parquet",
    ];
    let others = ["a.parquet.tmp", "layer=1/notes.txt", "manifest.json"];
    let mut seen = Vec::new();
    for url in [memory(), text(&folder.path().join("a")), format!("file://{}/b", folder.path().display())] {
        let store = Store::open(&url).unwrap();
        for (key, rows) in shards.iter().zip(100..) {
            store.put(key, shard(rows)).unwrap();
        }
        hidden.iter().for_each(|key| store.put(key, shard(99)).unwrap());
        others.iter().for_each(|key| store.put(key, &b"{\"format\": 3}"[..]).unwrap());
        store.put("layer=1/empty.parquet", Bytes::new()).unwrap();
        let dataset = open(&url);
        assert_eq!(paths(&dataset), shards, "{url}");
        assert_eq!(dataset.rows(), (100..106).sum::<u64>());
        let hidden =
            ["._a.parquet", ".a.parquet", ".ipynb_checkpoints/", "_common_metadata", "_delta_log/", "_temporary/"];
        let hidden = [&hidden[..], &["layer=1/.b.parquet.crc", "layer=1/_b.parquet"]].concat();
        let expected = [
            (Why::Hidden, 8, strings(&hidden)),
            (Why::Empty, 1, strings(&["layer=1/empty.parquet"])),
            (Why::OtherName, 2, strings(&["a.parquet.tmp", "layer=1/notes.txt"])),
        ];
        assert_eq!(left_out(&dataset, &url), expected, "{url}");
        let folders = dataset.contents().folders;
        let folders: Vec<_> =
            folders.iter().map(|f| (f.folder.strip_prefix(&url).unwrap(), f.shards, f.rows)).collect();
        assert_eq!(folders, [("", 2, 203), ("/_doc=7", 1, 100), ("/layer=1", 2, 207), ("/x_/y.z", 1, 105)]);
        // What a glob spells out is meant, whatever it is.
        let glob =
            |glob: &str| paths(&open(&format!("{url}/{glob}"))).into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(glob("*/*.p*"), strings(&["_doc=7/part-0.gz.parquet", "layer=1/a.parquet"]));
        assert_eq!(glob("**/*"), strings(&shards));
        assert_eq!(glob("layer=1/_*"), ["_b.parquet"]);
        assert_eq!(glob("_temporary/0/_*/*/*"), strings(&["_temporary/attempt_2026_m_000001_0/part-1.parquet"]));
        assert_eq!(open(&format!("{url}/layer=1/_b.parquet")).rows(), 99, "and so is a file that is named");
        seen.push(dataset.identity());
    }
    assert!(seen.iter().all(|identity| *identity == seen[0]), "{seen:?}");
}

#[test]
fn a_place_without_shards_says_what_lies_there() {
    let folder = tempfile::tempdir().unwrap();
    for url in [memory(), text(folder.path())] {
        let store = Store::open(&url).unwrap();
        store.put("_temporary/a.parquet", shard(50)).unwrap();
        store.put("b.parquet", Bytes::new()).unwrap();
        let says = ["1 whose names begin with . or _: _temporary/", "1 of zero bytes: b.parquet"];
        refused(&[&url], &says);
        // One of several must not go unnoticed.
        store.put("more/a.parquet", shard(50)).unwrap();
        refused(&[&format!("{url}/more"), &format!("{url}/mroe")], &["/mroe: not found"]);
    }
    refused(&[&text(&folder.path().join("b.parquet"))], &["zero bytes"]);
}

#[test]
fn what_a_manifest_lists_must_be_there_and_belong() {
    let folder = tempfile::tempdir().unwrap();
    for url in [memory(), text(folder.path())] {
        let store = write(&url, 100, 50, WIDTH, Dtype::F16);
        store.put("shard-00001.parquet", Bytes::new()).unwrap();
        refused(&[&url], &["shard-00001.parquet: changed", "0 bytes, the manifest says"]);
        store.put("shard-00001.parquet", shard(50)).unwrap();
        // As an earlier version wrote it, which read such folders.
        let json = String::from_utf8(store.get("manifest.json").unwrap().to_vec()).unwrap();
        assert!(json.contains("\"column\":\"activation\""), "{json}");
        let url = format!("{url}/old");
        let store = Store::open(&url).unwrap();
        ["_temporary/a.parquet", "b.parquet"]
            .iter()
            .zip(50..)
            .for_each(|(key, rows)| store.put(key, shard(rows)).unwrap());
        report(&format!("{url}/_temporary"));
        let inner = String::from_utf8(store.get("_temporary/manifest.json").unwrap().to_vec()).unwrap();
        let described = open(&format!("{url}/_temporary")).manifest();
        let mut shards = described.shards.clone();
        shards[0].path.insert_str(0, "_temporary/");
        let old = Manifest::new(WIDTH, Dtype::F16, false, true, shards);
        assert!(!String::from_utf8(old.to_json()).unwrap().contains("\"column\"") && inner.contains("\"column\""));
        store.put("manifest.json", old.to_json()).unwrap();
        refused(
            &[&url],
            &["_temporary/a.parquet", "left out as one of those whose names begin with . or _", "sae inspect"],
        );
    }
}

#[test]
fn links_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let put = |key: &str, rows: u64| Store::open(&text(folder.path())).unwrap().put(key, shard(rows)).unwrap();
    put("disk1/a.parquet", 50);
    put("disk2/deep/b.parquet", 60);
    put("data/here/c.parquet", 70);
    symlink(at("disk1"), at("data/there")).unwrap();
    symlink("../disk2/deep/b.parquet", at("data/b.parquet")).unwrap();
    // Circles, in one step and in two.
    symlink(at("data/here"), at("data/here/again")).unwrap();
    symlink(at("data"), at("disk1/back")).unwrap();
    let url = text(&at("data"));
    let dataset = open(&url);
    assert_eq!(paths(&dataset), ["b.parquet", "here/c.parquet", "there/a.parquet"]);
    assert_eq!(left_out(&dataset, &url), [(Why::Circle, 2, strings(&["here/again/", "there/back/"]))]);
    assert_eq!(open(&text(&at("data/here/c.parquet"))).rows(), 70);
    // A link to the place itself.
    symlink(at("data"), at("link")).unwrap();
    assert_eq!(open(&text(&at("link"))).identity(), dataset.identity());
    assert_eq!(paths(&open(&format!("{url}/*/*.parquet"))), ["here/c.parquet", "there/a.parquet"]);
    // A folder that a pattern reaches by a link, behind another way to it that matches nothing; and by two ways that do.
    put("runs/a/x.parquet", 80);
    put("runs/m/part/y.parquet", 90);
    fs::create_dir(at("runs/z")).unwrap();
    symlink(at("runs/a"), at("runs/z/part")).unwrap();
    let parts = format!("{}/*/part/*.parquet", text(&at("runs")));
    assert_eq!(paths(&open(&parts)), ["m/part/y.parquet", "z/part/x.parquet"]);
    symlink(at("runs/a"), at("runs/a/part")).unwrap();
    assert_eq!(open(&parts).rows(), 170, "a circle");
    fs::remove_file(at("runs/a/part")).unwrap();
    fs::create_dir(at("runs/y")).unwrap();
    symlink(at("runs/a"), at("runs/y/part")).unwrap();
    refused(&[&parts], &["y/part/x.parquet", "z/part/x.parquet"]);

    // A manifest written beside links locks none of them out.
    assert_eq!(report(&url).manifest, ManifestState::Written);
    assert_eq!(report(&url).manifest, ManifestState::Verified);
    assert!(open(&url).has_manifest() && open(&format!("{url}/b.parquet")).has_manifest());

    // What leads nowhere may have been a shard or a folder of some, unless its name keeps it out.
    symlink("/nowhere/d.parquet", at("data/.d.parquet")).unwrap();
    symlink("/nowhere", at("data/_nowhere")).unwrap();
    assert_eq!(open(&url).rows(), 180);
    for name in ["d.parquet", "e"] {
        symlink("/nowhere/d.parquet", at("data").join(name)).unwrap();
        refused(&[&url], &[&format!("data/{name}: a link to /nowhere/d.parquet, which cannot be followed")]);
        refused(&[&text(&at("data").join(name))], &["a link to /nowhere/d.parquet"]);
        assert_eq!(open(&format!("{url}/here/*.parquet")).rows(), 70, "a glob that does not reach it");
        fs::remove_file(at("data").join(name)).unwrap();
    }
    symlink(at("data/f.parquet"), at("data/f.parquet")).unwrap();
    refused(&[&url], &["f.parquet: a link to"]);
}

#[test]
fn the_same_shard_twice_is_refused_with_both_names() {
    let folder = tempfile::tempdir().unwrap();
    for url in [memory(), text(folder.path())] {
        let of = |path: &str| format!("{url}/{path}");
        write(&of("a"), 100, 50, WIDTH, Dtype::F16);
        let pair = ["a/shard-00001.parquet", "both lead to one file"];
        refused(&[&of("a"), &of("a/*1.parquet")], &pair);
        refused(&[&of("a/*1.parquet"), &url], &pair);
        refused(&[&of("a"), &of("a/")], &["a/shard-00000.parquet: the same shard as"]);
        // A copy is known by checksums, where both have them.
        let (a, b) = (Store::open(&of("a")).unwrap(), Store::open(&of("b")).unwrap());
        let names = ["shard-00000.parquet", "shard-00001.parquet"];
        names.iter().for_each(|name| b.put(name, a.get(name).unwrap()).unwrap());
        assert_eq!(tried(&[&of("a"), &of("b")]).unwrap().rows(), 200, "nothing tells");
        report(&of("b"));
        refused(&[&of("a"), &of("b")], &["b/shard-00000.parquet: the same shard as", "the same checksums", "keep one"]);
        b.delete("manifest.json").unwrap();
        // Others lie between them, and have none.
        write(&of("c"), 30, 50, WIDTH, Dtype::F16).delete("manifest.json").unwrap();
        report(&of("b"));
        refused(&[&of("a"), &of("c"), &of("b")], &["the same checksums"]);
        let (one, two) = (open(&of("a")), open(&of("b")));
        let (here, there, _) = one.shared_with(&two).unwrap();
        assert!(here.ends_with("a/shard-00000.parquet") && there.ends_with("b/shard-00000.parquet"), "{here} {there}");
        assert_eq!(one.shared_with(&open(&of("c"))), None);
        assert!(one.shared_with(&open(&of("a/*0.parquet"))).is_some());
        // Within one folder too: by inspection, which writes no manifest of it.
        let shards = open(&of("b")).manifest().shards;
        b.delete("manifest.json").unwrap();
        b.put("copy.parquet", a.get(names[0]).unwrap()).unwrap();
        let found = report(&of("b"));
        assert!(matches!(&found.mismatches[..], [one] if one.contains("b/copy.parquet")), "{:?}", found.mismatches);
        assert_eq!((found.manifest, b.head("manifest.json").unwrap()), (ManifestState::Mismatched, None));
        // As an earlier version wrote it. A run that began with it goes on.
        let copy = Shard { path: "copy.parquet".into(), ..shards[0].clone() };
        let old = Manifest::new(WIDTH, Dtype::F16, false, true, [shards, vec![copy]].concat());
        b.put("manifest.json", old.to_json()).unwrap();
        refused(&[&of("b")], &["b/shard-00000.parquet: the same shard as", "b/copy.parquet"]);
        let kept = OpenOptions { manifest: Some(of("run/manifest-train.json")), ..OpenOptions::default() };
        assert_eq!(Dataset::open(&[of("b")], &kept).unwrap().rows(), 150);
    }
}

#[test]
fn two_ways_to_one_file_are_the_same_shard() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    Store::open(&text(folder.path())).unwrap().put("data/x/a.parquet", shard(50)).unwrap();
    let url = text(&at("data"));
    let ways: [(&str, &dyn Fn()); 3] = [
        ("data/b.parquet", &|| symlink("x/a.parquet", at("data/b.parquet")).unwrap()),
        ("data/y/a.parquet", &|| symlink(at("data/x"), at("data/y")).unwrap()),
        ("data/b.parquet", &|| fs::hard_link(at("data/x/a.parquet"), at("data/b.parquet")).unwrap()),
    ];
    for (other, make) in ways {
        make();
        refused(&[&url], &[other, "data/x/a.parquet", "both lead to one file"]);
        ["data/b.parquet", "data/y"].iter().for_each(|path| drop(fs::remove_file(at(path))));
    }
    symlink(at("data"), at("link")).unwrap();
    refused(&[&url, &text(&at("link"))], &["link/x/a.parquet: the same shard as"]);
    refused(&[&url, &format!("file://{url}/x")], &["the same shard as"]);
    assert!(open(&url).shared_with(&open(&text(&at("link")))).is_some());
}

#[test]
fn shards_of_another_column_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for url in [memory(), text(folder.path())] {
        let store = Store::open(&url).unwrap();
        store.put("a/a.parquet", with_column("layer3")).unwrap();
        store.put("b/b.parquet", with_column("layer9")).unwrap();
        let says = ["b.parquet: its activations are in the column layer9, those of", "a/a.parquet in layer3"];
        refused(&[&url], &says);
        let places = [format!("{url}/a"), format!("{url}/b")];
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        refused(&places, &says);
        places.iter().for_each(|place| drop(report(place)));
        assert_eq!(open(places[0]).column(), Some("layer3"));
        refused(&places, &says);
        assert_eq!(tried(&places[..1]).unwrap().rows(), 40);
        // A manifest that says no column, as version 0.1.0 wrote them, was made without comparing the columns.
        let described = |place: &str| {
            let mut shard = open(&format!("{url}/{place}")).shards()[0].clone();
            shard.path.insert_str(0, &format!("{place}/"));
            shard
        };
        let shards = ["a", "b"].map(described);
        let old = Manifest::new(WIDTH, Dtype::F32, false, true, shards.to_vec());
        store.put("manifest.json", old.to_json()).unwrap();
        refused(&[&url], &says);
        let one = Manifest::new(WIDTH, Dtype::F32, false, true, shards[..1].to_vec());
        store.delete("b/b.parquet").unwrap();
        store.put("manifest.json", one.to_json()).unwrap();
        assert_eq!(open(&url).column(), Some("layer3"));
    }
}

/// Clients that show folders leave an object of zero bytes for each.
#[test]
fn folders_that_are_objects_are_no_empty_shards() {
    let url = memory();
    let store = Store::open(&url).unwrap();
    store.put("a.parquet", Bytes::new()).unwrap();
    store.put("a.parquet-old", Bytes::new()).unwrap();
    store.put("a.parquet/b.parquet", shard(50)).unwrap();
    let dataset = open(&url);
    assert_eq!(paths(&dataset), ["a.parquet/b.parquet"]);
    assert_eq!(left_out(&dataset, &url), [(Why::OtherName, 1, strings(&["a.parquet-old"]))]);
}

/// What other people's folders may hold must not keep a data set from being read.
#[test]
fn folders_that_stay_closed_are_not_looked_into() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    ["a.parquet", ".trash/b.parquet", "x/c.parquet"]
        .iter()
        .for_each(|key| Store::open(&text(folder.path())).unwrap().put(key, shard(50)).unwrap());
    for closed in [".trash", "x"] {
        // Root may read anything: where it looks it finds this.
        symlink(at("nowhere"), at(closed).join("gone.parquet")).unwrap();
        fs::set_permissions(at(closed), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let (glob, whole) = (tried(&[&text(&at("*.parquet"))]), tried(&[&text(folder.path())]));
    match fs::read_dir(at("x")) {
        Err(_) => {
            assert!(matches!(&whole, Err(Error::Denied { location, .. }) if location.ends_with("/x")), "{whole:?}")
        }
        Ok(_) => assert!(whole.unwrap_err().to_string().contains("/x/gone.parquet")),
    }
    for closed in [".trash", "x"] {
        fs::set_permissions(at(closed), fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(glob.unwrap().rows(), 50);
}

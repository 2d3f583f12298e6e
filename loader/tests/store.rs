//! One behavioural suite for every store that needs no server, and what happens where nothing can be written.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::memory;
use loader::{Dtype, Error, ShardWriter, Store, WriteOptions};

fn behaves(store: &Store) {
    assert!(store.list("").unwrap().is_empty());
    assert_eq!(store.head("a").unwrap(), None);
    assert!(matches!(store.get("a"), Err(Error::NotFound { .. })));
    store.put("a", &b"one"[..]).unwrap();
    store.put("a", &b"two!"[..]).unwrap();
    assert_eq!(&store.get("a").unwrap()[..], b"two!");
    assert_eq!(&store.get_range("a", 1..3).unwrap()[..], b"wo");
    assert!(store.get_range("a", 2..9).is_err(), "a short body is an error");
    assert!(store.put_new("b/c/d", &b"x"[..]).unwrap());
    assert!(!store.put_new("b/c/d", &b"y"[..]).unwrap());
    assert_eq!(&store.join("b").unwrap().get("c/d").unwrap()[..], b"x");
    let keys = |folder: &str| store.list(folder).unwrap().into_iter().map(|e| e.key).collect::<Vec<_>>();
    assert_eq!(keys(""), ["a", "b/c/d"]);
    assert_eq!(keys("b"), ["b/c/d"]);
    assert_eq!(store.head("a").unwrap().unwrap().size, 4);
    store.delete("a").unwrap();
    store.delete("a").unwrap();
    assert_eq!(keys(""), ["b/c/d"]);
}

#[test]
fn memory_and_local_behave_alike() {
    behaves(&Store::open(&memory()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    behaves(&Store::open(folder.path().join("new/er").to_str().unwrap()).unwrap());
}

#[test]
fn a_place_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let error = Store::open(folder.path().join("file").to_str().unwrap()).unwrap().put("a", &b"x"[..]).unwrap_err();
    assert!(matches!(error, Error::CannotWrite { .. }), "{error}");
    let readonly = folder.path().join("readonly");
    std::fs::create_dir(&readonly).unwrap();
    std::fs::set_permissions(&readonly, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    if std::fs::write(readonly.join("probe"), b"").is_err() {
        let error = Store::open(readonly.to_str().unwrap()).unwrap().put("a", &b"x"[..]).unwrap_err();
        assert!(matches!(error, Error::CannotWrite { .. }), "{error}");
    }
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    std::fs::create_dir(folder.path().join("taken")).unwrap();
    assert!(store.put("taken", &b"x"[..]).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Ranks of one job come and go in one folder, and each takes away what it finds empty.
#[test]
fn a_folder_that_others_remove_as_empty_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    std::thread::scope(|scope| {
        for rank in 0..4 {
            let root = &root;
            scope.spawn(move || {
                let store = Store::open(root.to_str().unwrap()).unwrap();
                let key = format!("meeting/one/rank-{rank}.json");
                for _ in 0..500 {
                    assert!(store.put_new(&key, &b"x"[..]).unwrap());
                    store.delete(&key).unwrap();
                    let _ = std::fs::remove_dir(root);
                }
            });
        }
    });
    assert!(!root.exists());
}

#[test]
fn leftovers_of_killed_writers_are_hidden_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let leftover = |name: &str, hours: u64| {
        let path = folder.path().join(format!(".loader-tmp-{name}"));
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours)).unwrap();
        path
    };
    let (old, young, other) = (leftover("1-0-a-b", 2), leftover("2-0-a-b", 0), leftover("1-1-b", 2));
    let unrelated = folder.path().join(".hidden");
    std::fs::copy(&old, &unrelated).unwrap();
    std::fs::File::open(&unrelated).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    store.put("a-b", &b"x"[..]).unwrap();
    assert_eq!(store.list("").unwrap().into_iter().map(|e| e.key).collect::<Vec<_>>(), [".hidden", "a-b"]);
    assert!(!old.exists() && young.exists(), "a young one may belong to a writer that is alive");
    assert!(!other.exists(), "what another target's writer left goes too: its name may never come again");
    assert!(unrelated.exists(), "what is not ours stays");
}

/// The folder of a killed attempt is never written again: what its writer left goes with the next write anywhere.
#[test]
fn leftovers_do_not_stay_in_folders_below() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let prefix = "attempt-1/shard".to_string();
    let options = WriteOptions { prefix, row_group_bytes: 16, page_bytes: 16, ..WriteOptions::new(8, Dtype::F16) };
    let mut writer = ShardWriter::create(&store, options).unwrap();
    writer.write(&[0; 16], &[]).unwrap();
    // As after a kill: nothing is dropped.
    std::mem::forget(writer);
    let temporary = |folder: &Path| {
        let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.to_str().unwrap().contains(".loader-tmp-"))
    };
    assert_eq!(temporary(&folder.path().join("attempt-1")), None);
    let left = temporary(folder.path()).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::options().append(true).open(&left).unwrap().set_modified(old).unwrap();
    store.put("attempt-2/manifest.json", &b"x"[..]).unwrap();
    assert_eq!(temporary(folder.path()), None);
}

/// Answers every request with the next of these status lines (the last one for ever); counts them.
fn server(answers: &'static [&'static str]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let n = counted.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
            let head = "Content-Length: 2\r\nLast-Modified: Sun, 22 Nov 2026 10:00:00 GMT\r\nConnection: close";
            let _ = write!(stream, "HTTP/1.1 {}\r\n{head}\r\n\r\nok", answers[n]);
        }
    });
    (url, count)
}

#[test]
fn servers_that_refuse_are_asked_once_and_broken_ones_again() {
    let get = |answers| {
        let (url, count) = server(answers);
        (Store::open(&url).unwrap().get("a"), count.load(Ordering::SeqCst))
    };
    let (refused, asked) = get(&["403 Forbidden"]);
    assert!(matches!(refused, Err(Error::Denied { .. })) && asked == 1, "{refused:?} after {asked}");
    // What refuses a HEAD has no body to say why.
    let (url, _) = server(&["400 Bad Request"]);
    let mute = Store::open(&url).unwrap().head("a").unwrap_err();
    assert!(matches!(mute, Error::Denied { .. }) && mute.to_string().contains("gives no reason"), "{mute}");
    let (absent, asked) = get(&["404 Not Found"]);
    assert!(matches!(absent, Err(Error::NotFound { .. })) && asked == 1, "{absent:?} after {asked}");
    let (bytes, asked) = get(&["503 Busy", "500 Broken", "200 OK"]);
    assert!(bytes.is_ok_and(|b| &b[..] == b"ok") && asked == 3, "{asked}");
}

#[test]
fn an_unreachable_server_is_told_from_a_wrong_address() {
    // Nothing listens on port 9: the request is refused at once, but the retry budget is minutes, so only the parse
    // and the scheme are checked here; servers are tested elsewhere.
    let store = Store::open("http://127.0.0.1:9/x").unwrap();
    assert_eq!(format!("{store:?}"), "Store(http://127.0.0.1:9/x)");
}

//! What an object is by the ending of its name: what a browser makes of a page in a bucket depends on it.

use object_store::path::Path as Key;
use object_store::{Attribute, Attributes};

/// What a store does not know is offered for download, as are weights.
const BYTES: &str = "application/octet-stream";

/// The attributes that an object is stored with. Text is shown rather than downloaded where its own type is one that browsers do not show.
pub(crate) fn attributes(key: &Key) -> Attributes {
    let content_type = match key.extension() {
        Some("html") => "text/html; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("csv") => "text/csv; charset=utf-8",
        Some("jsonl" | "md" | "toml" | "txt") => "text/plain; charset=utf-8",
        Some("parquet") => "application/vnd.apache.parquet",
        _ => BYTES,
    };
    [(Attribute::ContentType, content_type)].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutMode};

    use super::*;
    use crate::store::io;
    use crate::store::multipart::Multipart;
    use crate::store::remote::{Lists, Remote};

    /// Put, put where nothing was, uploaded as one object and in parts.
    #[test]
    fn every_way_of_storing_says_what_an_object_is() {
        let client = Arc::new(InMemory::new());
        for (name, expected) in [
            ("run/report.html", "text/html; charset=utf-8"),
            ("laws/loss.svg", "image/svg+xml"),
            ("summary.json", "application/json"),
            ("metrics.jsonl", "text/plain; charset=utf-8"),
            ("x.parquet", "application/vnd.apache.parquet"),
            ("weights-00000.safetensors", "application/octet-stream"),
            ("v1.2/COMMIT", "application/octet-stream"),
        ] {
            let check = |way: &str| {
                let (client, key) = (client.clone(), Key::from(name));
                let found = io::wait(async move {
                    let found = client.get(&key).await.expect("it is there").attributes;
                    client.delete(&key).await.expect("it goes");
                    Ok(found)
                });
                let found = found.expect("an answer");
                assert_eq!(found.get(&Attribute::ContentType).map(AsRef::as_ref), Some(expected), "{name}, {way}");
            };
            for mode in [PutMode::Overwrite, PutMode::Create] {
                let place = Remote { client: client.clone(), key: Key::from(name), lists: Lists::Whole };
                assert!(io::wait(place.put("x".into(), mode, name.into())).expect("stored"));
                check("put");
            }
            for bytes in [1, 17 << 20] {
                let mut upload = Multipart::create(client.clone(), Key::from(name), name.into());
                upload.write(vec![0; bytes]).expect("written");
                upload.finish().expect("stored");
                check("uploaded");
            }
        }
    }
}

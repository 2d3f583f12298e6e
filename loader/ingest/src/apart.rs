//! What has to be apart: the files of a source from each other, and what is written from what is read.

use std::collections::HashMap;

use loader::{Error, Resolver, Result, Store};
use tensors::File;

/// Refuses a file that is listed twice, and a local one that has two names there: its rows would come twice.
pub(crate) fn refuse_twice(files: &[File]) -> Result<()> {
    let (mut resolver, mut seen) = (Resolver::default(), HashMap::<String, &File>::new());
    for file in files {
        if let Some(first) = seen.insert(resolver.place(file.store(), file.key()), file) {
            return Err(file.flaw(match first.key() == file.key() {
                true => "is listed twice, and its rows would come twice: list it once".to_string(),
                false => {
                    format!("is one file with {}, and its rows would come twice: keep one of the two", first.url())
                }
            }));
        }
    }
    Ok(())
}

/// Refuses an output in the folder that is read: what is written there would be taken for a part of the source.
pub(crate) fn refuse_inside(source: &Store, out: &Store) -> Result<()> {
    if !out.lies_in(source) {
        return Ok(());
    }
    let (out, source) = (out.url(), source.url());
    Err(Error::Arguments(format!(
        "{out} lies in the source, {source}, which another start would read with the shards in it: name a folder outside of it"
    )))
}

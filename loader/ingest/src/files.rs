//! The files of a source, found by one rule on names.

use loader::{Error, Result, Store};
use tensors::File;
use xxhash_rust::xxh3::Xxh3;

/// The lower-case extension of a file's name.
pub(crate) fn extension(file: &File) -> String {
    let name = file.key().rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default()
}

/// Takes note of what tells a file from others: its name, size, beginning and end.
pub(crate) fn identify(file: &File, hash: &mut Xxh3) -> Result<()> {
    let (first, last) = file.store().ends(file.key(), file.size())?;
    hash.update(&(file.key().len() as u64).to_le_bytes());
    hash.update(file.key().as_bytes());
    hash.update(&file.size().to_le_bytes());
    hash.update(&first);
    hash.update(&last);
    Ok(())
}

/// Two files of which the first has the higher number in its name, as 10.npy and 2.npy: their order is that of names.
pub(crate) fn out_of_number(files: &[File]) -> Option<(&str, &str)> {
    let numbers = |key: &str| -> Vec<u64> {
        let digits = key.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        digits.map(|digits| digits.parse().unwrap_or(u64::MAX)).collect()
    };
    let words = |key: &str| key.split(|c: char| c.is_ascii_digit()).filter(|word| !word.is_empty()).collect::<String>();
    let pairs = files.windows(2).map(|pair| (pair[0].key(), pair[1].key()));
    let mut alike = pairs.filter(|(first, second)| words(first) == words(second));
    alike.find(|(first, second)| numbers(first) > numbers(second))
}

/// What a source consists of.
#[derive(Debug)]
pub(crate) struct Found {
    /// The place, a folder or what the file lies in.
    pub(crate) store: Store,
    /// Sorted by key, those left out whose name or folder begins with `.` or `_`.
    pub(crate) files: Vec<File>,
}

fn is_hidden(key: &str) -> bool {
    key.split('/').any(|part| part.starts_with('.') || (part.starts_with('_') && !part.contains('=')))
}

/// Finds the files of a folder, or one file.
pub(crate) fn find(source: &str) -> Result<Found> {
    let folder = Store::open(source)?;
    let of_file = || -> Result<Option<Found>> {
        // What names no file, a whole bucket for example, may be a folder.
        let Ok((store, key)) = Store::open_file(source) else { return Ok(None) };
        let entry = store.head(&key)?;
        Ok(entry.map(|entry| Found { files: vec![File::new(&store, entry)], store }))
    };
    if folder.local_path().is_none_or(|path| !path.is_dir())
        && let Some(found) = of_file()?
    {
        return Ok(found);
    }
    if !folder.lists() {
        return Err(Error::Arguments(format!("{source}: its store cannot list: name one file")));
    }
    let entries = folder.list("")?;
    if entries.is_empty() {
        return Err(Error::NotFound {
            location: source.into(),
            hint: ": name a file or a folder of files".into(),
            source: None,
        });
    }
    let files = entries.into_iter().filter(|e| !is_hidden(&e.key)).map(|e| File::new(&folder, e)).collect();
    Ok(Found { store: folder, files })
}

//! PyTorch's zip archives (`torch.save`): a pickle that describes tensors, and the bytes of each storage, uncompressed.
//!
//! The pickle is read by a parser that knows tensors alone ([`crate::pickle`]); nothing is executed. A storage is where the archive's directory says,
//! if it lies in the file as it is: stored, not compressed nor encrypted.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use loader::{Error, Result};
use zip::{CompressionMethod, ZipArchive};

use crate::file::flaw_of;
use crate::pickle::{self, Described};
use crate::{File, Number, Tensor, Tensors};

/// The longest pickle that is read: of hundreds of thousands of tensors.
const MAX_PICKLE: u64 = 64 << 20;

/// All tensors by name, held against the storages that they lie in.
pub(crate) fn tensors(file: &File) -> Result<Tensors> {
    let head = file.head(4)?;
    if head[..] != *b"PK\x03\x04" {
        return Err(file.flaw(
            "is no zip archive of PyTorch's (or cut off): files that PyTorch before 1.6 wrote are bare pickles: load it where you trust it, and save \
             it again",
        ));
    }
    let mut archive = Archive::open(file)?;
    let place =
        archive.place("data.pkl")?.ok_or_else(|| file.flaw("is no archive of PyTorch's: it has no data.pkl"))?;
    if place.length > MAX_PICKLE {
        return Err(file.flaw(format!("its pickle has {} bytes: {MAX_PICKLE} at most are read", place.length)));
    }
    let pickle = file.read_at(place.offset, place.length)?;
    if let Some(order) = archive.place("byteorder")?
        && file.read_at(order.offset, order.length.min(16))?[..] != *b"little"
    {
        return Err(file.flaw("is big-endian: load it, and save it again on another machine"));
    }
    let found = pickle::tensors(&pickle).map_err(|problem| file.flaw(problem))?;
    let tensors = found.tensors.into_iter();
    let named = tensors.map(|(name, tensor)| Ok((name, archive.tensor(&tensor)?))).collect::<Result<_>>()?;
    Ok(Tensors { named, lists: found.lists, head: pickle })
}

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    length: u64,
}

struct Archive<'a> {
    file: &'a File,
    zip: ZipArchive<BufReader<Reader<'a>>>,
    failed: Failed,
    /// The folder that all lies in.
    root: String,
    /// Where storages lie: many tensors may have one.
    storages: HashMap<Rc<str>, Place>,
}

impl<'a> Archive<'a> {
    fn open(file: &'a File) -> Result<Self> {
        let failed = Failed::default();
        let broken = |e| broken(file, &failed, "cut off or damaged: its directory", e);
        let reader = Reader { file, at: 0, failed: Rc::clone(&failed) };
        let zip = ZipArchive::new(BufReader::with_capacity(64 << 10, reader)).map_err(broken)?;
        let mut root = None;
        for name in zip.file_names() {
            let name = name.map_err(broken)?;
            if let Some(folder) =
                name.strip_suffix("data.pkl").filter(|folder| folder.is_empty() || folder.ends_with('/'))
            {
                root = Some(folder.to_string());
                break;
            }
        }
        let root = root.ok_or_else(|| file.flaw("is no archive of PyTorch's: it has no data.pkl"))?;
        Ok(Archive { file, zip, failed, root, storages: HashMap::new() })
    }

    /// Where an entry lies in the file, if there is one.
    fn place(&mut self, name: &str) -> Result<Option<Place>> {
        let (file, name) = (self.file, format!("{}{name}", self.root));
        let Some(index) = self.zip.index_for_name(&name) else { return Ok(None) };
        let entry =
            self.zip.by_index_raw(index).map_err(|e| broken(file, &self.failed, &format!("damaged: {name}"), e))?;
        if entry.compression() != CompressionMethod::Stored
            || entry.encrypted()
            || entry.size() != entry.compressed_size()
        {
            return Err(file.flaw(format!(
                "{name} is compressed: PyTorch stores its tensors as they are; save them again by torch.save"
            )));
        }
        let (offset, length) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
        match offset.checked_add(length) {
            Some(end) if end <= file.size() => Ok(Some(Place { offset, length })),
            _ => Err(file.flaw(format!(
                "cut off or damaged: {name} claims {length} bytes from byte {offset} of {}",
                file.size()
            ))),
        }
    }

    fn storage(&mut self, key: &Rc<str>) -> Result<Place> {
        if let Some(place) = self.storages.get(key) {
            return Ok(*place);
        }
        let name = format!("data/{key}");
        let file = self.file;
        let absent = || file.flaw(format!("damaged: it lacks {name:?}, where a tensor lies"));
        let place = self.place(&name)?.ok_or_else(absent)?;
        self.storages.insert(Rc::clone(key), place);
        Ok(place)
    }

    fn tensor(&mut self, of: &Described) -> Result<Tensor> {
        let number = match of.number {
            Ok(number) => number,
            Err(name) => {
                return Ok(Tensor { offset: 0, number: Err(name.into()), transposed: None, shape: of.shape.clone() });
            }
        };
        let place = self.storage(&of.storage)?;
        let size = number.size();
        let (held, count) = (place.length / size, of.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n)));
        let end = count.and_then(|count| count.checked_add(of.offset));
        let is_dense = of.is_contiguous() || of.is_transposed();
        if of.numel > held || (is_dense && end.is_none_or(|end| end > held)) {
            return Err(self.file.flaw(format!(
                "damaged: a tensor of shape {:?} claims more than the {held} numbers of \"data/{}\"",
                of.shape, of.storage
            )));
        }
        let transposed = of.is_transposed().then_some(number);
        let number = if of.is_contiguous() { Ok(number) } else { Err(apart(number)) };
        Ok(Tensor { offset: place.offset + of.offset.min(held) * size, number, transposed, shape: of.shape.clone() })
    }
}

/// The name of what is no tensor in the order of its rows.
fn apart(number: Number) -> String {
    format!("a view of {} whose numbers lie apart (save tensor.contiguous())", number.name())
}

/// The first error of a file's store: the archive's reader keeps no error, or takes it for damage.
type Failed = Rc<OnceCell<Error>>;

/// Why an archive could not be read: its store's error where there was one, and damage otherwise.
fn broken(file: &File, failed: &Failed, what: &str, error: zip::result::ZipError) -> Error {
    failed.get().cloned().unwrap_or_else(|| flaw_of(file.url(), format!("{what}: {error}"), error))
}

/// A file as the archive's reader wants it.
struct Reader<'a> {
    file: &'a File,
    at: u64,
    failed: Failed,
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A store that does not answer is not asked for the next place where a directory could lie.
        if let Some(error) = self.failed.get() {
            return Err(io::Error::other(error.clone()));
        }
        let end = self.file.size().min(self.at.saturating_add(out.len() as u64));
        let bytes = self.file.read(self.at.min(end)..end).map_err(|error| {
            let _ = self.failed.set(error.clone());
            io::Error::other(error)
        })?;
        out[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use loader::{Entry, Store};
    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    #[test]
    fn a_store_that_fails_is_no_damage_of_an_archive() {
        let store = Store::open("memory://torch-archives").unwrap();
        let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in [("a/data.pkl", 10), ("a/data/0", 300_000)] {
            writer
                .start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
                .unwrap();
            writer.write_all(&vec![0; bytes]).unwrap();
        }
        let bytes = writer.finish().unwrap().into_inner();
        let file = |key: &str| File::new(&store, Entry { key: key.into(), size: bytes.len() as u64, etag: None });
        let is_of_store = |error: Option<Error>| matches!(error, Some(Error::NotFound { .. }));

        // While its directory is read, and later.
        assert!(is_of_store(Archive::open(&file("absent.pt")).err()));
        store.put("whole.pt", bytes.clone()).unwrap();
        let whole = file("whole.pt");
        let mut archive = Archive::open(&whole).unwrap();
        assert_eq!(archive.place("data/0").unwrap().map(|place| place.length), Some(300_000));
        store.delete("whole.pt").unwrap();
        assert!(is_of_store(archive.place("data.pkl").err()));

        // What is damaged is.
        store.put("damaged.pt", vec![0; bytes.len()]).unwrap();
        assert!(matches!(Archive::open(&file("damaged.pt")).err(), Some(Error::Data { .. })));
    }
}

//! Which features of a trained dictionary an export holds, where it does not hold all: `features.safetensors` beside the weights, with
//! one tensor `feature` of whole numbers, I64 `[F]`, ascending. The feature `f` of the export is `feature[f]` of the dictionary that
//! was trained. I64 because PyTorch and NumPy index by it.
//!
//! cfg.json has the same list for readers that know no other file, as long as it is short.

use loader::Store;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Message};

/// Its name.
pub(crate) const FILE: &str = "features.safetensors";

const TENSOR: &str = "feature";

/// Bytes before the tensor, at most.
const HEADER_BYTES: u64 = 4096;

/// Writes the map of an export to its folder.
///
/// # Errors
/// Those of the store.
pub(crate) fn write(store: &Store, features: impl Iterator<Item = usize>) -> Result<(), Error> {
    let bytes: Vec<u8> = features.flat_map(|feature| (feature as i64).to_le_bytes()).collect();
    let internal = |error: safetensors::SafeTensorError| Error::Internal(error.into());
    let view = TensorView::new(Dtype::I64, vec![bytes.len() / 8], &bytes).map_err(internal)?;
    store.put(FILE, safetensors::serialize([(TENSOR, view)], None).map_err(internal)?)?;
    Ok(())
}

/// The map of `features` features, if there is one in a folder.
///
/// # Errors
/// [`Error::Weights`] when it is damaged or of another number of features; those of the store.
pub(crate) fn read(store: &Store, features: usize) -> Result<Option<Vec<u32>>, Error> {
    let Some(entry) = store.head(FILE)? else { return Ok(None) };
    let place = store.url_of(FILE);
    let refuse = |what: String| Error::Weights(format!("{place} {what}: export the dictionary again").into());
    let most = 8 * features as u64 + HEADER_BYTES;
    if entry.size > most {
        return Err(refuse(format!("has {} bytes, more than a map of {features} features", entry.size)));
    }
    let bytes = store.get(FILE)?;
    let parsed = SafeTensors::deserialize(&bytes).and_then(|file| {
        let tensor = file.tensor(TENSOR)?;
        Ok((tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
    });
    let (dtype, shape, data) = parsed.map_err(|error| {
        Error::Weights(Message::of(
            format!("{place} is no map of features: {error}: export the dictionary again"),
            error,
        ))
    })?;
    if dtype != Dtype::I64 || shape != [features] {
        return Err(refuse(format!("holds {dtype:?} {shape:?}, and the weights have {features} features")));
    }
    let ids: Option<Vec<u32>> =
        data.as_chunks::<8>().0.iter().map(|id| u32::try_from(i64::from_le_bytes(*id)).ok()).collect();
    match ids {
        Some(ids) if ids.windows(2).all(|pair| pair[0] < pair[1]) => Ok(Some(ids)),
        _ => Err(refuse("holds features that do not ascend".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_comes_back_and_a_wrong_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().display().to_string()).expect("a store");
        assert_eq!(read(&store, 3).expect("no map"), None);
        write(&store, [2, 5, 70_000].into_iter()).expect("written");
        assert_eq!(read(&store, 3).expect("a map"), Some(vec![2, 5, 70_000]));
        let said = |features| read(&store, features).expect_err("another number").to_string();
        assert!(said(4).contains("I64 [3]") && said(4).contains("4 features"), "{}", said(4));
        for (wrong, part) in [(vec![2, 2], "do not ascend"), (vec![1, 1 << 40], "do not ascend")] {
            write(&store, wrong.into_iter()).expect("written");
            assert!(read(&store, 2).expect_err("wrong").to_string().contains(part));
        }
        store.put(FILE, vec![7; 10_000]).expect("written");
        assert!(read(&store, 2).expect_err("too long").to_string().contains("10000 bytes"));
        store.put(FILE, vec![7; 100]).expect("written");
        assert!(read(&store, 2).expect_err("damaged").to_string().contains("no map of features"));
    }
}

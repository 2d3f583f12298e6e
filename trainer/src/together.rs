//! What all ranks of a run come to together.

use kernels::ranks::{Failure, Group};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What a rank tells the others of how it fared.
#[derive(Serialize, Deserialize)]
enum Told<T> {
    Came(T),
    /// A checkpoint is damaged: there may be one before it.
    Damaged(String),
    Failed {
        rank: usize,
        code: Option<u8>,
        reason: String,
    },
}

/// What every rank has come to, in their order. Where one failed, all fail: it with its own error, the others with its name,
/// words and exit code; so that no rank goes on alone, or waits for one that is gone. `group` holds all ranks.
///
/// # Errors
/// `mine`; [`Error::Checkpoint`] when another rank found damage; [`kernels::Error::Peer`].
pub(crate) fn together<T: Serialize + DeserializeOwned>(
    group: &Group,
    operation: &'static str,
    mine: Result<T, Error>,
) -> Result<Vec<T>, Error> {
    if group.size() == 1 {
        return mine.map(|value| vec![value]);
    }
    let told = match &mine {
        Ok(value) => Told::Came(value),
        Err(error @ Error::Checkpoint(_)) => Told::Damaged(error.to_string()),
        Err(error) => {
            let Failure { rank, code, reason } = error.failure(group.index());
            Told::Failed { rank, code, reason }
        }
    };
    let internal = |error: serde_json::Error| Error::Internal(error.to_string());
    let words = serde_json::to_vec(&told).map_err(internal)?;
    let heard = group.gather(&words);
    // Its own error says more than that others are gone.
    mine?;
    let mut all = Vec::new();
    for words in heard? {
        match serde_json::from_slice(&words).map_err(internal)? {
            Told::Came(value) => all.push(value),
            Told::Damaged(reason) => return Err(Error::Checkpoint(reason)),
            Told::Failed { rank, code, reason } => {
                return Err(Failure { rank, code, reason }.during(operation).into());
            }
        }
    }
    Ok(all)
}

/// Sums of counts over all ranks.
///
/// # Errors
/// [`kernels::Error::Peer`].
pub(crate) fn sum<const N: usize>(group: &Group, counts: [u64; N]) -> Result<[u64; N], kernels::Error> {
    let mut sums = [0; N];
    for counts in group.gather(bytemuck::cast_slice(&counts))? {
        let counts = counts.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    Ok(sums)
}

//! What all ranks of a run come to together.

use kernels::ranks::{Failure, Group};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What a rank sends the others of its own result.
#[derive(Serialize, Deserialize)]
enum Outcome<T> {
    Ready(T),
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
    let outcome = match &mine {
        Ok(value) => Outcome::Ready(value),
        Err(error @ Error::Checkpoint(_)) => Outcome::Damaged(error.to_string()),
        Err(error) => {
            let Failure { rank, code, reason } = error.failure(group.index());
            Outcome::Failed { rank, code, reason }
        }
    };
    let internal = |error: serde_json::Error| Error::Internal(error.into());
    let words = serde_json::to_vec(&outcome).map_err(internal)?;
    let heard = group.gather(&words);
    // Its own error says more than that others are gone.
    mine?;
    let mut all = Vec::new();
    for words in heard? {
        match serde_json::from_slice(&words).map_err(internal)? {
            Outcome::Ready(value) => all.push(value),
            Outcome::Damaged(reason) => return Err(Error::Checkpoint(reason.into())),
            Outcome::Failed { rank, code, reason } => {
                return Err(Failure { rank, code, reason }.during(operation).into());
            }
        }
    }
    Ok(all)
}

/// What this rank has come to, once all have come to something: [`together`] for what the others need not know.
///
/// # Errors
/// Those of [`together`].
pub(crate) fn once_all<T>(group: &Group, operation: &'static str, mine: Result<T, Error>) -> Result<T, Error> {
    let (value, came) = match mine {
        Ok(value) => (Some(value), Ok(())),
        Err(error) => (None, Err(error)),
    };
    together(group, operation, came)?;
    Ok(value.expect("together fails where one has failed"))
}

/// Sums of counts over all ranks.
///
/// # Errors
/// [`kernels::Error::Peer`].
pub(crate) fn sum<const N: usize>(group: &Group, counts: [u64; N]) -> Result<[u64; N], kernels::Error> {
    let mut sums = [0; N];
    for counts in group.gather(bytemuck::cast_slice(&counts))? {
        let counts: Vec<u64> = bytemuck::pod_collect_to_vec(&counts);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    Ok(sums)
}

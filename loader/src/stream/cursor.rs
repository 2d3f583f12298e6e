//! Where a stream stands: enough to continue it exactly, in less than a KiB.

use serde::{Deserialize, Serialize};

use crate::stream::order::{CursorOrigin, RowOrder};
use crate::{Error, Result};

/// A position in a dataset's order. `Cursor::default()` is the start of whatever the stream is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The next step to deliver.
    pub step: u64,
    /// What the step counts in; `None` only in a default cursor.
    #[serde(rename = "of")]
    pub origin: Option<CursorOrigin>,
}

impl Cursor {
    /// A cursor at `step` of an order.
    pub(crate) fn at(order: &RowOrder, step: u64) -> Self {
        Cursor { step, origin: Some(order.origin().clone()) }
    }

    /// Refuses a cursor that counts in another order, naming every difference; `if_copied` is what to do where the data are copies
    /// of those that it counts in.
    pub(crate) fn check(&self, order: &RowOrder, if_copied: Option<String>) -> Result<()> {
        let Some(was) = &self.origin else { return Ok(()) };
        let now = order.origin();
        let fields = [
            ("data (manifest identity)", was.identity.clone(), now.identity.clone()),
            ("version of the order", was.order_version.to_string(), now.order_version.to_string()),
            ("order", was.order.clone(), now.order.clone()),
            ("seed", was.seed.to_string(), now.seed.to_string()),
            ("epoch", was.epoch.to_string(), now.epoch.to_string()),
            ("batch", was.batch.to_string(), now.batch.to_string()),
            ("rows in the epoch", was.rows.to_string(), now.rows.to_string()),
        ];
        let differences: Vec<String> = fields
            .into_iter()
            .filter(|(_, was, is)| was != is)
            .map(|(name, was, is)| format!("{name} was {was} and is now {is}"))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        let if_copied = if_copied.filter(|_| was.identity != now.identity);
        Err(Error::Cursor { difference: differences.into_iter().chain(if_copied).collect::<Vec<_>>().join("; ") })
    }
}

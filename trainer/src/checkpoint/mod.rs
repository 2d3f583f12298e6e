//! Checkpoints: written once, completely, then committed by one marker.
//!
//! ```text
//! checkpoints/step-0000012345/attempt-0002/
//!     weights-000000.safetensors …     W_enc [n,D], b_enc [n], W_dec [n,D] of whole tiles of 128 features, ≤ 64 MiB a file
//!     optimizer-000000.safetensors …   Adam's moments, the clocks and the firings of the same features
//!     shared.safetensors               b_dec with its moments, and the running sums of the metrics
//!     manifest.json                    what the files hold and their hashes; position in the data; recipe
//!     COMMIT                           hash of manifest.json, written last
//! ```
//! A file is numbered by its first tile. Every rank writes the features that it owns; any number of ranks reads the files back.
//! Without COMMIT nothing counts; attempts of a step count up, and
//! the highest committed one holds.

mod find;
mod format;
mod load;
mod named;
mod retain;
mod save;
mod tensors;

pub use find::{newest, newest_with};
pub use format::{
    FORMAT, File, Found, Hash, Holds, LeftOut, Manifest, State, TILE, bytes, features_at_once, identity, spare_bytes,
};
pub use load::{load, load_clocks, load_training, load_weights, verify};
pub use named::{Which, named, open, open_which};
pub use retain::{Known, retain};
pub use save::{Committed, Progress, Saving, Snapshot, save, staging_bytes};

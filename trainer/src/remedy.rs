//! What a run's recipe can do against errors of the crates below, which know of no recipe: it stands behind their text.

use loader::Help;

/// Against an error of the loader; empty where its text says all.
pub fn of_loader(error: &loader::Error) -> String {
    match error.help() {
        Some(Help::Column) => ": name one in data.column".into(),
        Some(Help::Skip(row_group)) => format!(", or leave the row group out with data.skip = [\"{row_group}\"]"),
        Some(Help::Prefetch(needed)) => format!(
            ": lower data.window_bytes, raise data.prefetch_bytes to {needed} if the memory is there, or shuffle the data once and read it \
             in sequence"
        ),
        Some(Help::FewerThreads) => ": lower data.threads, or let this user have more of them".into(),
        // They are no business of a recipe.
        Some(Help::Credentials) | None => String::new(),
    }
}

/// Against an error of the device; empty where its text says all.
pub fn of_device(error: &kernels::Error) -> &'static str {
    use kernels::Error as Device;
    match error {
        // They do not depend on the batch.
        Device::OutOfMemory { what, .. } if what.contains("weights") => ": lower sae.features",
        Device::OutOfMemory { .. } => ": lower train.batch or sae.features",
        Device::TooManyRows { .. } => ": lower train.batch, or share it between more ranks",
        Device::Threads { .. } => ": lower train.threads, or let this user have more of them",
        _ => "",
    }
}

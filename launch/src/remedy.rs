//! What the command line can do against errors of the crates below, which know of no flags: it stands behind their text.

use loader::{Help, Unexpanded};
use trainer::{Error, Exit};

/// An error in the words that a user sees.
pub fn words(error: &Error) -> String {
    format!("{error}{}", remedy(error))
}

/// A path with a variable in it, in the words that a user sees.
pub fn unexpanded(error: &Unexpanded) -> String {
    format!("{error}{BY_FLAG}")
}

const BY_FLAG: &str = ", or give it with --set and double quotes";
const WITHOUT_GPU: &str = ", or compute with --device cpu";

/// Empty where the text says all.
fn remedy(error: &Error) -> &'static str {
    use kernels::Error as Device;
    match error {
        Error::Interrupted { .. } => ": continue with --resume",
        Error::Loader(loader::Error::Unexpanded(_)) => BY_FLAG,
        Error::Loader(error) if error.help() == Some(Help::Credentials) => ", and go on with --resume-or-start",
        Error::Device(Device::NoDriver { .. } | Device::DriverTooOld { .. } | Device::NoGpu) => WITHOUT_GPU,
        Error::Device(Device::GpuTooOld { .. }) => {
            ": choose another GPU with --device cuda:N, or compute with --device cpu"
        }
        Error::Device(Device::Nccl { .. }) => {
            ": start the job again with --resume; if it stays, NCCL_DEBUG=INFO makes NCCL say more"
        }
        // Another start helps where it was not what the ranks were started with.
        Error::Device(Device::Peer { .. }) if error.exit() == Exit::Hardware => {
            ": start the job again with --resume-or-start once that rank can run"
        }
        _ => "",
    }
}

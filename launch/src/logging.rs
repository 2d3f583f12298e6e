//! Messages go to standard error, above the progress bar; results go to standard output.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::args::Log;
use crate::progress::{self, AboveBars};

/// Installs the writer of messages. `RUST_LOG` chooses what is shown; by default this program's from `info` up, and its
/// libraries' warnings.
pub fn start(log: Log) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,sae=info,trainer=info,loader=info,kernels=info"));
    if log == Log::Json {
        progress::hide_bars();
    }
    let writer = || AboveBars;
    let messages = match log {
        Log::Json => fmt::layer().json().with_writer(writer).boxed(),
        Log::Pretty => {
            let colours = std::io::stderr().is_terminal();
            fmt::layer().without_time().with_target(false).compact().with_ansi(colours).with_writer(writer).boxed()
        }
    };
    tracing_subscriber::registry().with(messages).with(filter).init();
}

//! The signals on which a run saves and stops, and the one that must not end it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::failure::Failure;

/// SIGTERM and SIGINT; SIGUSR1 and SIGUSR2, which schedulers send before a time limit; SIGXCPU, which the system sends when the time of
/// `ulimit -t` is over; and SIGHUP, which comes when a terminal is closed, unless the process was started to ignore it: that is how nohup
/// lets a run outlive its terminal.
pub fn that_stop() -> Vec<i32> {
    let mut signals = vec![SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGXCPU];
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// Signals ask the run to save and stop, however often they come: a scheduler that has sent one sends another at the end of the time,
/// and the system sends SIGXCPU every second. Only a second SIGINT, from a keyboard, ends the run at once; and not where a launcher
/// passes signals on, since a terminal signals all processes of a job and would make one into two.
pub fn stop_on_signals(launched: bool) -> Result<Arc<AtomicBool>, Failure> {
    let (stop, interrupted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let handle = || {
        if !launched {
            // Without a checkpoint it must not look like an interrupted run to a launcher.
            register_conditional_shutdown(SIGINT, 128 + SIGINT, Arc::clone(&interrupted))?;
            register(SIGINT, Arc::clone(&interrupted))?;
        }
        that_stop().into_iter().try_for_each(|signal| register(signal, Arc::clone(&stop)).map(|_| ()))
    };
    handle().map_err(|error| Failure::arguments(format!("signals cannot be handled: {error}")))?;
    Ok(stop)
}

/// From now on a file that grows beyond `ulimit -f` is an error of the write, and SIGXFSZ does not end the process.
pub fn leave_file_sizes_to_writers() {
    // Where that cannot be had, the system ends the process as it would have.
    let _ = register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Whether the process ignores a signal, as Linux says; other systems do not say it.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The signals that are ignored, a bit each.
fn ignored(status: &str) -> Option<u64> {
    u64::from_str_radix(status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_what_the_system_says() {
        let status = "Name:\tsae\nSigCgt:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigBlk:\t0000000000000000\n";
        assert_eq!(ignored(status), Some(0x1001), "SIGHUP and SIGPIPE");
        assert_eq!(ignored("Name:\tsae\n"), None);
    }
}

//! Where to compute.

use std::str::FromStr;

use kernels::Error;
use kernels::cpu::Cpu;
use kernels::cuda::card::{Card, Options};

use crate::failure::Failure;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first card when there is one that can be used, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A card, as the driver counts them.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let card =
            |number: &str| number.parse().map(DeviceChoice::Cuda).map_err(|_| "N in cuda:N is a number from 0 on");
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text.strip_prefix("cuda:").map_or(Err("write auto, cpu, cuda or cuda:N"), card),
        }
    }
}

/// Opens what was chosen; `threads` is for the processor.
///
/// # Errors
/// When a card was asked for and cannot be used.
pub fn open(choice: DeviceChoice, threads: Option<usize>) -> Result<Cpu, Failure> {
    match choice {
        DeviceChoice::Cpu => {}
        DeviceChoice::Cuda(ordinal) => {
            let card = Card::open(ordinal, Options::from_environment())?;
            return Err(Failure::arguments(format!("{}: compute with --device cpu", no_operations(&card))));
        }
        DeviceChoice::Auto => match Card::open(0, Options::from_environment()) {
            Ok(card) => tracing::info!("computing on the processor: {}", no_operations(&card)),
            // Most machines without a card: nothing to wonder about.
            Err(Error::NoDriver { .. }) => {}
            Err(error) => tracing::info!("computing on the processor: {error}"),
        },
    }
    Ok(Cpu::new(threads))
}

fn no_operations(card: &Card) -> String {
    format!("{}: this build has no CUDA operations yet", card.describe())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:7", DeviceChoice::Cuda(7)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}

//! Where to compute.

use std::str::FromStr;

use kernels::Error;
use kernels::cpu::{self, Cpu};
use kernels::cuda::card::{Card, Options};
use kernels::cuda::{self, Cuda};
use kernels::mesh::Axes;
use trainer::recipe::{Precision, Train};

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

/// What was opened.
pub enum Opened {
    /// The processor.
    Cpu(Cpu),
    /// A card.
    Cuda(Cuda),
}

/// Opens what was chosen for a recipe, for the rank among `axes`, one of `local_ranks` on this machine.
///
/// # Errors
/// When a card was asked for and cannot be used, or the recipe asks for what only a card has.
pub fn open(choice: DeviceChoice, recipe: &Train, axes: Axes, local_ranks: usize) -> Result<Opened, Failure> {
    let several = axes.all.size() > 1;
    let card = match choice {
        DeviceChoice::Cuda(_) if several => {
            return Err(Failure::arguments(
                "several ranks compute on processors only so far: leave --device out, or start one rank",
            ));
        }
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto if several => None,
        DeviceChoice::Cuda(ordinal) => Some(Card::open(ordinal, Options::from_environment())?),
        DeviceChoice::Auto => match Card::open(0, Options::from_environment()) {
            Ok(card) => Some(card),
            // Most machines without a card: nothing to wonder about.
            Err(Error::NoDriver { .. }) => None,
            Err(error) => {
                tracing::info!("computing on the processor: {error}");
                None
            }
        },
    };
    match (card, recipe.precision) {
        (Some(card), Precision::F32) => Ok(Opened::Cuda(Cuda::new(&card, cuda::Precision::F32)?)),
        (Some(card), Precision::Auto | Precision::Mixed) => Ok(Opened::Cuda(Cuda::new(&card, cuda::Precision::Mixed)?)),
        (None, Precision::Mixed) => Err(Failure::arguments(
            "train.precision = \"mixed\" needs a GPU: the processor computes in f32; set train.precision to \"auto\"",
        )),
        (None, Precision::Auto | Precision::F32) => {
            // Ranks on one machine share its cores.
            let share = || std::thread::available_parallelism().map(|cores| cores.get().div_ceil(local_ranks)).ok();
            let threads = recipe.threads.or_else(|| several.then(share).flatten());
            Ok(Opened::Cpu(Cpu::among(cpu::Options { threads, ..cpu::Options::default() }, axes)?))
        }
    }
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

//! Where to compute.

use std::fmt;
use std::str::FromStr;

use kernels::Error;
use kernels::cpu::{self, Cpu};
use kernels::cuda::gpu::{Gpu, Options};
use kernels::cuda::{self, Cuda};
use kernels::mesh::Axes;
use trainer::recipe::{Moments, Precision, Train};

use crate::failure::Failure;
use crate::remedy;

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU when there is one that can be used, and of several ranks all have one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU, as the driver counts them; without a number the first one, or of several ranks the one of the rank's number on its
    /// machine.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let gpu = |number: &str| {
            number.parse().map(|gpu| DeviceChoice::Cuda(Some(gpu))).map_err(|_| "N in cuda:N is a number from 0 on")
        };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(None)),
            _ => text.strip_prefix("cuda:").map_or(Err("write auto, cpu, cuda or cuda:N"), gpu),
        }
    }
}

/// As it is written.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(None) => f.write_str("cuda"),
            DeviceChoice::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

/// What was opened.
pub enum Opened {
    /// The processor.
    Cpu(Cpu),
    /// A GPU.
    Cuda(Cuda),
}

/// Where a rank is among those of its machine.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Its number there.
    pub rank: usize,
    /// How many are there.
    pub ranks: usize,
}

impl Local {
    /// The only one.
    pub const ALONE: Local = Local { rank: 0, ranks: 1 };
}

/// Opens what was chosen for a recipe, for the rank among `axes`.
///
/// # Errors
/// When a GPU was asked for and cannot be used, or the recipe asks for what only a GPU has.
pub fn open(choice: DeviceChoice, recipe: &Train, axes: Axes, local: Local) -> Result<Opened, Failure> {
    let several = axes.all.size() > 1;
    let gpu = match choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(Some(_)) if several => {
            return Err(Failure::arguments(
                "--device cuda:N is one GPU, and several ranks need one each: write --device cuda",
            ));
        }
        DeviceChoice::Cuda(Some(ordinal)) => Some(Gpu::open(ordinal, Options::from_environment())?),
        DeviceChoice::Cuda(None) => Some(own_gpu(local)?),
        DeviceChoice::Auto => {
            let gpu = gpu_if_usable(local.rank);
            let id = gpu.as_ref().map(Gpu::id).transpose()?.unwrap_or_default();
            let ids = axes.all.gather(&id)?;
            let one_each = (0..ids.len()).all(|rank| !ids[rank].is_empty() && !ids[..rank].contains(&ids[rank]));
            gpu.filter(|_| one_each)
        }
    };
    match gpu {
        Some(gpu) => Ok(Opened::Cuda(Cuda::among(&gpu, on_a_gpu(recipe), axes)?)),
        None => {
            check_processor(recipe)?;
            // Ranks on one machine share its cores.
            let share = || std::thread::available_parallelism().map(|cores| cores.get().div_ceil(local.ranks)).ok();
            let threads = recipe.threads.or_else(|| several.then(share).flatten());
            Ok(Opened::Cpu(Cpu::among(cpu::Options { threads, ..cpu::Options::default() }, axes)?))
        }
    }
}

/// Opens what was chosen for one process that evaluates, in `train`'s numbers on a GPU. On the processor they are of 32 bits, whatever a
/// GPU had trained in: those are the bits that checkpoints hold.
///
/// # Errors
/// When a GPU was asked for and cannot be used.
pub fn open_alone(choice: DeviceChoice, train: &Train) -> Result<Opened, Failure> {
    let of_processor = || Train { precision: Precision::F32, moments: Moments::F32, ..train.clone() };
    let gpu = match choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto => gpu_if_usable(0),
        DeviceChoice::Cuda(_) => return open(choice, train, Axes::alone(), Local::ALONE),
    };
    match gpu {
        Some(gpu) => Ok(Opened::Cuda(Cuda::among(&gpu, on_a_gpu(train), Axes::alone())?)),
        None => open(DeviceChoice::Cpu, &of_processor(), Axes::alone(), Local::ALONE),
    }
}

/// The GPU of a rank: that of its number on this machine, or the only one that its launcher lets it see.
///
/// # Errors
/// Those of [`Gpu::open`].
pub fn visible_gpu(local_rank: usize) -> Result<Gpu, Error> {
    match Gpu::open(local_rank, Options::from_environment()) {
        Err(Error::NoSuchGpu { count: 1, .. }) => Gpu::open(0, Options::from_environment()),
        opened => opened,
    }
}

/// The same, where a GPU was asked for.
fn own_gpu(local: Local) -> Result<Gpu, Failure> {
    match visible_gpu(local.rank) {
        Err(Error::NoSuchGpu { count, .. }) => Err(Failure::arguments(format!(
            "{} ranks are on this machine, and it has {count} GPUs that this one can see: start at most as many ranks as \
             GPUs, or compute with --device cpu",
            local.ranks
        ))),
        opened => Ok(opened?),
    }
}

/// The same where the processor does as well.
pub fn gpu_if_usable(local_rank: usize) -> Option<Gpu> {
    match visible_gpu(local_rank) {
        Ok(gpu) => Some(gpu),
        // Most machines without a GPU: nothing to wonder about.
        Err(Error::NoDriver { .. }) => None,
        Err(error) => {
            tracing::info!("computing on the processor: {}", remedy::words(&error.into()));
            None
        }
    }
}

/// The numbers of a recipe on a GPU.
pub fn on_a_gpu(recipe: &Train) -> cuda::Precision {
    let moments = match recipe.moments {
        Moments::F32 => cuda::Moments::F32,
        Moments::Bf16 => cuda::Moments::Bf16,
        Moments::Int8 => cuda::Moments::Int8,
    };
    match recipe.precision {
        Precision::F32 => cuda::Precision::F32,
        Precision::Auto | Precision::Mixed => cuda::Precision::Mixed(moments),
        Precision::Bf16Sr => cuda::Precision::Bf16Sr(moments),
    }
}

/// Refuses what only a GPU has.
fn check_processor(recipe: &Train) -> Result<(), Failure> {
    let (key, value, remedy) = match (recipe.precision, recipe.moments) {
        (Precision::Auto | Precision::F32, Moments::F32) => return Ok(()),
        (Precision::Mixed, _) => ("train.precision", "mixed", "auto"),
        (Precision::Bf16Sr, _) => ("train.precision", "bf16-sr", "auto"),
        (_, Moments::Bf16) => ("train.moments", "bf16", "f32"),
        (_, Moments::Int8) => ("train.moments", "int8", "f32"),
    };
    Err(Failure::arguments(format!(
        "{key} = \"{value}\" needs a GPU: the processor computes in f32; set {key} to \"{remedy}\""
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(None)),
            ("cuda:7", DeviceChoice::Cuda(Some(7))),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}

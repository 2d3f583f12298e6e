//! Cases on a GPU: each precision in a process of its own, since what breaks a GPU's context would end the cases of all that come after
//! it; and every case listed, whatever became of those before.

use std::process::Command;

use kernels::cuda::gpu::{Gpu, Options};
use kernels::cuda::{Cuda, Precision};

use crate::listing::Listing;
use crate::need;

/// Set for a process that must have a GPU, an emulated one or a real one, to the cases that are wanted.
pub const EMULATED: &str = "SAE_TEST_EMULATED";

/// Set for a process that takes the cases of one precision only, as its `Debug` shows it.
pub const PRECISION: &str = "SAE_TEST_PRECISION";

/// The GPU, and which cases are wanted. None, said once, where there is no GPU.
///
/// # Panics
/// When one was promised.
#[track_caller]
pub fn gpu() -> Option<(Gpu, Option<String>)> {
    let wanted = std::env::var(EMULATED).ok();
    match Gpu::open(0, Options::from_environment()) {
        Ok(gpu) => Some((gpu, wanted)),
        Err(error) => {
            assert!(wanted.is_none(), "a GPU: {error}");
            println!("no GPU: {error}");
            need::optional("GPUs");
            None
        }
    }
}

/// Starts this program's test `name` again for each precision. The GPU must be closed: some admit one process at a time.
///
/// # Panics
/// When cases failed, with their precisions.
#[track_caller]
pub fn in_processes(name: &str, precisions: impl Iterator<Item = Precision>) {
    let own = std::env::current_exe().expect("a process knows its file");
    let fails = |precision: String| {
        let mut command = Command::new(&own);
        command.args(["--exact", name, "--nocapture"]).env(PRECISION, &precision);
        let status = command.status().expect("this program starts again");
        (!status.success()).then(|| format!("{precision} ({status})"))
    };
    let failed: Vec<String> = precisions.map(|precision| format!("{precision:?}")).filter_map(fails).collect();
    assert!(failed.is_empty(), "cases failed in {}: they are listed above", failed.join(", "));
}

/// Cases in one precision, and the device that they share.
pub struct Cases<'a> {
    gpu: &'a Gpu,
    precision: Precision,
    device: Option<Cuda>,
    listing: Listing,
}

impl<'a> Cases<'a> {
    /// None so far.
    pub fn on(gpu: &'a Gpu, precision: Precision) -> Self {
        Cases { gpu, precision, device: None, listing: Listing::of(&format!("{precision:?}")) }
    }

    /// Runs a case, and says what became of it.
    pub fn run(&mut self, name: &str, case: impl FnOnce(&Cuda)) {
        let Cases { gpu, precision, device, listing } = self;
        let opened = || Cuda::new(gpu, *precision).expect("kernels");
        if !listing.run(name, || case(device.get_or_insert_with(opened))) {
            // It remembers that it has failed.
            *device = None;
        }
    }

    /// The end of the list.
    ///
    /// # Panics
    /// Those of [`Listing::end`].
    #[track_caller]
    pub fn end(self) {
        self.listing.end();
    }
}

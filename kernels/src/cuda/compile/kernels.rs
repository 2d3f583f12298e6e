//! From a source to a cubin for a GPU: out of the binary, out of the cache, or compiled now.
//!
//! **Kernels are text inside the binary**, compiled for the GPU that is there. A cubin comes from the first of these that has it: the
//! binary (a build with `SAE_CUBINS` carries what `sae kernels` compiled ahead; the build fails when that was made from other sources),
//! the cache (`SAE_CACHE_DIR`, by default `~/.cache/sae/cubins`), NVRTC. Cubins are made for sm_80 (all of 8.x), sm_90a and sm_100a, and
//! for other GPUs when they are met. Below 8.0 tensor cores have no bf16, and there is no support. A cubin is known by a hash of its source, all
//! headers and the flags, by architecture and version of NVRTC; its file begins with one line that says so, with a checksum of the rest.
//! So caches may be shared, damaged or deleted at any time. Releases are compiled by NVRTC 13.0, the oldest that is supported, for a
//! driver need not take what a newer one makes; what the driver does refuse is taken from the next of the three, with a warning.

use std::path::PathBuf;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::arch::Arch;
use super::cache::Cache;
use super::cubin::Label;
use super::embedded;
use super::nvrtc::Nvrtc;
use super::sources::KernelSource;
use crate::Error;

/// Where a cubin came from, in the order in which it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The binary carries it.
    Embedded,
    /// It was compiled at an earlier start.
    Cache,
    /// It was compiled now.
    Compiled,
}

impl Origin {
    /// For people: where a cubin was found.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Origin::Embedded => "carried by this program",
            Origin::Cache => "compiled at an earlier start",
            Origin::Compiled => "compiled now",
        }
    }
}

/// What gives cubins.
#[derive(Debug)]
pub struct Kernels {
    cache: Option<Cache>,
    nvrtc_folder: Option<PathBuf>,
    /// Looked for only when it is needed.
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

impl Kernels {
    /// With a cache, or none, and the folder of NVRTC when it is not to be looked for.
    pub fn new(cache: Option<Cache>, nvrtc_folder: Option<PathBuf>) -> Self {
        Kernels { cache, nvrtc_folder, nvrtc: OnceLock::new() }
    }

    /// The image of a source: from where it is found first, of the places behind `refused`, whose image the driver does not take.
    ///
    /// # Errors
    /// [`Error::NoCompiler`], [`Error::UnknownArch`] or [`Error::Compile`], when it must be compiled.
    pub fn cubin(
        &self,
        source: &KernelSource,
        arch: Arch,
        refused: Option<Origin>,
    ) -> Result<(Vec<u8>, Origin), Error> {
        if refused.is_none()
            && let Some(image) = embedded::find(source, arch)
        {
            return Ok((image.to_vec(), Origin::Embedded));
        }
        let cache = self.cache.as_ref().filter(|_| refused < Some(Origin::Cache));
        let nvrtc = match self.nvrtc() {
            Ok(nvrtc) => nvrtc,
            Err(error) => {
                let label = Label::new(source, arch, "");
                let kept = cache.and_then(|cache| cache.get_of_any_compiler(&label));
                return kept.map(|image| (image, Origin::Cache)).ok_or(error);
            }
        };
        let label = Label::new(source, arch, nvrtc.version());
        if let Some(image) = cache.and_then(|cache| cache.get(&label)) {
            return Ok((image, Origin::Cache));
        }
        let image = nvrtc.compile(source, arch)?.image;
        if let Some(cache) = &self.cache {
            cache.put(&label, &image);
        }
        Ok((image, Origin::Compiled))
    }

    /// The images of several sources, in their order, each of the places behind the one beside it. What must be compiled is compiled
    /// side by side.
    ///
    /// # Errors
    /// Those of [`Kernels::cubin`].
    pub fn cubins(
        &self,
        sources: &[(KernelSource, Option<Origin>)],
        arch: Arch,
    ) -> Result<Vec<(Vec<u8>, Origin)>, Error> {
        let started = std::time::Instant::now();
        let cubin = |(source, refused): &(KernelSource, Option<Origin>)| self.cubin(source, arch, *refused);
        let found: Vec<(Vec<u8>, Origin)> = sources.par_iter().map(cubin).collect::<Result<_, _>>()?;
        let compiled = found.iter().filter(|(_, origin)| *origin == Origin::Compiled).count();
        if compiled > 0 {
            let (files, compiled_s) = (sources.len(), started.elapsed().as_secs_f64());
            tracing::info!(compiled, files, compiled_s, %arch, "compiled kernel files");
        }
        Ok(found)
    }

    fn nvrtc(&self) -> Result<&Nvrtc, Error> {
        let found = self.nvrtc.get_or_init(|| {
            Nvrtc::find(self.nvrtc_folder.as_deref()).map_err(|error| match error {
                Error::NoCompiler { looked } => looked,
                other => other.to_string(),
            })
        });
        found.as_ref().map_err(|looked| Error::NoCompiler { looked: looked.clone() })
    }
}

//! A GPU: whether there is one that can be used, what it is, and kernels on it.
//!
//! cudarc panics where the driver or one of its functions is missing. So whatever could be missing is asked for here before
//! cudarc is, and a driver new enough has the rest.
//!
//! The binary links nothing of NVIDIA's: it builds and starts on any Linux, and opens the driver when a GPU is asked for.
//! `SAE_CUDA_DRIVER` names another driver library; tests use it to stand in for machines that they do not run on.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaModule};
use cudarc::nvrtc::Ptx;

use crate::Error;
use crate::cuda::compile::arch::Arch;
use crate::cuda::compile::cache::Cache;
use crate::cuda::compile::kernels::{Kernels, Origin};
use crate::cuda::compile::sources::KernelSource;
use crate::first_error::FirstError;

/// The CUDA version that cudarc's functions belong to, as drivers write it.
const OLDEST_DRIVER: i32 = 13_000;

/// The environment variable that names the driver's library.
const DRIVER: &str = "SAE_CUDA_DRIVER";

/// Functions that are called before the driver's version is known, or when it is too old.
const FIRST_FUNCTIONS: [&str; 4] = ["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"];

/// What opening a GPU depends on outside the program.
#[derive(Debug, Default)]
pub struct Options {
    /// The driver's library, when it is not the one on the loader's search path. For all GPUs of the process: the first one
    /// opened decides. Its soname must be `libcuda.so`, which is what cudarc asks the loader for first.
    pub driver: Option<PathBuf>,
    /// Compiled kernels of earlier starts.
    pub cache: Option<Cache>,
    /// The folder of NVRTC, when it is not to be looked for.
    pub nvrtc_folder: Option<PathBuf>,
}

impl Options {
    /// As the environment says: `SAE_CUDA_DRIVER`, and a cache in its usual place.
    pub fn from_environment() -> Self {
        let driver = std::env::var_os(DRIVER).filter(|path| !path.is_empty()).map(PathBuf::from);
        Options { driver, cache: Cache::usual(), nvrtc_folder: None }
    }
}

/// A GPU with a context on it.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    kernels: Kernels,
    name: String,
    arch: Arch,
    memory_bytes: usize,
    multiprocessors: u32,
    shared_bytes: u32,
}

/// What a GPU knows of the others on its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peers {
    /// How many there are.
    pub others: usize,
    /// How many it reaches directly.
    pub reached: usize,
}

impl Gpu {
    /// Opens the GPU that the driver counts as `ordinal`.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoGpu`], [`Error::NoSuchGpu`], [`Error::GpuTooOld`]; or
    /// [`Error::Cuda`] when the driver fails.
    pub fn open(ordinal: usize, options: Options) -> Result<Gpu, Error> {
        open_driver(options.driver.as_deref())?;
        result::init().map_err(|error| failed("cuInit", error))?;
        let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
        let count = usize::try_from(count).unwrap_or(0);
        if count == 0 {
            return Err(Error::NoGpu);
        }
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or(Error::NoSuchGpu { ordinal, count })?;
        let device = result::device::get(number).map_err(|error| failed("cuDeviceGet", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("cuDeviceGetName", error))?;
        let attribute = |attribute| -> Result<u32, Error> {
            // SAFETY: the device came from the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            let value = value.map_err(|error| failed("cuDeviceGetAttribute", error))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let Some(arch) = Arch::of_gpu(major, minor) else {
            return Err(Error::GpuTooOld { name, major, minor });
        };
        let context = CudaContext::new(ordinal).map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        let (_, memory_bytes) = context.mem_get_info().map_err(|error| failed("cuMemGetInfo", error))?;
        Ok(Gpu {
            context,
            kernels: Kernels::new(options.cache, options.nvrtc_folder),
            name,
            arch,
            memory_bytes,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// Name and what matters of it, for people: `NVIDIA H200, sm_90a, 132 multiprocessors, 139.8 GiB`.
    pub fn describe(&self) -> String {
        let gib = self.memory_bytes as f64 / (1_u64 << 30) as f64;
        format!("{}, {}, {} multiprocessors, {gib:.1} GiB", self.name, self.arch, self.multiprocessors)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells it from every other GPU, on this machine and others.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn id(&self) -> Result<Vec<u8>, Error> {
        let uuid = self.context.uuid().map_err(|error| failed("cuDeviceGetUuid", error))?;
        Ok(uuid.bytes.iter().flat_map(|byte| byte.to_ne_bytes()).collect())
    }

    /// Other GPUs that the driver counts here, and how many of them this one reaches without going through the host's memory.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn peers(&self) -> Result<Peers, Error> {
        let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
        let own = self.context.cu_device();
        let mut peers = Peers { others: 0, reached: 0 };
        for ordinal in (0..count).filter(|&ordinal| usize::try_from(ordinal) != Ok(self.context.ordinal())) {
            let other = result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
            let mut reaches = 0;
            // SAFETY: both devices came from the driver, and the flag outlives the call.
            let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut reaches, own, other) }.result();
            asked.map_err(|error| failed("cuDeviceCanAccessPeer", error))?;
            peers.others += 1;
            peers.reached += usize::from(reaches != 0);
        }
        Ok(peers)
    }

    /// What kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Its memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What of its memory nobody holds now.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn free_bytes(&self) -> Result<usize, Error> {
        let (free, _) = self.context.mem_get_info().map_err(|error| failed("cuMemGetInfo", error))?;
        Ok(free)
    }

    /// Its multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Most shared memory of a block that asks for it.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// The context: streams, memory and events are made with it.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Loads sources onto the GPU, in their order; what is neither embedded nor cached is compiled, and so is what the driver
    /// refuses of these.
    ///
    /// # Errors
    /// Those of [`Kernels::cubin`]; [`Error::RefusedKernels`] when the driver takes none that could be had; [`Error::Cuda`].
    pub fn load(&self, sources: &[KernelSource]) -> Result<Vec<Arc<CudaModule>>, Error> {
        let mut modules = vec![None; sources.len()];
        let mut missing: Vec<(usize, Option<Origin>)> = (0..sources.len()).map(|index| (index, None)).collect();
        let mut refusal: Option<Refusal> = None;
        while !missing.is_empty() {
            let wanted: Vec<_> = missing.iter().map(|&(index, refused)| (sources[index], refused)).collect();
            let images = self.kernels.cubins(&wanted, self.arch).map_err(|error| Refusal::before(&refusal, error))?;
            let mut refused = Vec::new();
            for ((index, _), (image, origin)) in missing.into_iter().zip(images) {
                match self.context.load_module(Ptx::from_binary(image)) {
                    Ok(module) => modules[index] = Some(module),
                    Err(error) if refuses_image(error) => {
                        let which = format!("{} ({})", sources[index].file, origin.describe());
                        let found = Refusal { which, reason: words(error) };
                        if origin == Origin::Compiled {
                            return Err(found.error(String::new()));
                        }
                        refusal.get_or_insert(found);
                        refused.push((index, Some(origin)));
                    }
                    Err(error) => return Err(failed("cuModuleLoadData", error)),
                }
            }
            if let Some(Refusal { which, reason }) = refusal.as_ref().filter(|_| !refused.is_empty()) {
                let files = refused.len();
                tracing::warn!(files, first = %which, %reason, "the NVIDIA driver refuses kernels: compiling others");
            }
            missing = refused;
        }
        Ok(modules.into_iter().flatten().collect())
    }
}

/// The first kernels that the driver did not take.
#[derive(Clone)]
struct Refusal {
    which: String,
    reason: String,
}

impl Refusal {
    fn error(self, nvrtc: String) -> Error {
        Error::RefusedKernels { which: self.which, reason: self.reason, nvrtc }
    }

    /// `error`, or what led to it: nobody misses a compiler before the driver has refused kernels that were there.
    fn before(refusal: &Option<Refusal>, error: Error) -> Error {
        match (refusal, error) {
            (Some(refusal), Error::NoCompiler { looked }) => {
                refusal.clone().error(format!(": no NVRTC was found: {looked}"))
            }
            (_, error) => error,
        }
    }
}

/// Whether the driver will never take this image, where it might take one that another compiler has made.
fn refuses_image(error: DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_SOURCE
    )
}

/// Makes sure that cudarc has a driver that it can use.
fn open_driver(path: Option<&Path>) -> Result<(), Error> {
    let no_driver = |looked: String| Error::NoDriver { looked };
    let wanted = match path {
        None => None,
        Some(path) => {
            // SAFETY: a user who names a library wants it to run.
            let library = unsafe { libloading::Library::new(path) };
            let library = library.map_err(|error| no_driver(format!("{}: {error}", path.display())))?;
            // Never unloaded: cudarc will hold it under another name.
            Some((path, &*Box::leak(Box::new(library))))
        }
    };
    // SAFETY: this and `culib` open a library of NVIDIA's, or the one above.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_driver("libcuda.so.1 is not on the loader's search path".to_owned()));
    }
    // SAFETY: as above; it is there, so this does not panic.
    let library = unsafe { sys::culib() };
    // SAFETY: the address is looked at, not called.
    let address = |library: &libloading::Library, name: &str| unsafe {
        library.get::<*const c_void>(name.as_bytes()).map(|symbol| *symbol).ok()
    };
    for name in FIRST_FUNCTIONS {
        let Some(found) = address(library, name) else {
            let what = path.map_or("libcuda.so".to_owned(), |path| path.display().to_string());
            return Err(no_driver(format!("{what} has no function {name}: it is no CUDA driver")));
        };
        if let Some((path, wanted)) = wanted
            && address(wanted, name) != Some(found)
        {
            let path = path.display();
            return Err(no_driver(format!("{path} is not used, because the loader has another libcuda.so")));
        }
    }
    check_version()
}

fn check_version() -> Result<(), Error> {
    let mut version: c_int = 0;
    // SAFETY: the function exists, may be called before cuInit, and writes one number.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|error| failed("cuDriverGetVersion", error))?;
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let version = u32::try_from(version).unwrap_or(0);
    Err(Error::DriverTooOld { major: version / 1000, minor: version % 1000 / 10 })
}

/// An error of the driver in words, by what can be done about it.
pub(crate) fn failed(call: &'static str, error: DriverError) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => return Error::NoGpu,
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            let looked = "libcuda.so is the stub that CUDA toolkits bring along for linking".to_owned();
            return Error::NoDriver { looked };
        }
        _ => {}
    }
    Error::Cuda { call, reason: words(error) }
}

/// What a call of the driver gave, or nothing, when its error is remembered.
pub(crate) fn noted<T>(first: &FirstError, call: &'static str, result: Result<T, DriverError>) -> Option<T> {
    first.keep(result.map_err(|error| failed(call, error)))
}

/// The driver's words for an error, and its name.
pub(crate) fn words(error: DriverError) -> String {
    let words = error.error_string().map(|words| words.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{words} ({:?})", error.0)
}

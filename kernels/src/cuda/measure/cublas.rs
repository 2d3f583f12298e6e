//! cuBLAS, NVIDIA's library of GEMMs: finding it, and the time that it takes for the encoder's GEMM. No run uses it: it is
//! what benchmarks hold `encode.cu` against. A machine with a driver alone has none; PyTorch brings one along.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::{fmt, ptr};

use libloading::Library;

use super::stopwatch::Stopwatch;
use crate::cuda::compile::nvrtc::usual_folders;
use crate::cuda::device::Cuda;
use crate::cuda::dictionary::CudaDictionary;
use crate::cuda::ops::normalize::Rows;
use crate::cuda::runtime::memory::GpuMemory;
use crate::cuda::runtime::precision::Precision;
use crate::{Dictionary, Error};

/// File names, best first. The functions below are the same in both.
const NAMES: [&str; 2] = ["libcublas.so.13", "libcublas.so.12"];

/// The environment variable that names its folder.
const FOLDER: &str = "SAE_CUBLAS";

/// Values of a result at most, 2 GiB in bf16: a GEMM is made for as many features as that has room for.
const MOST_VALUES: usize = 1 << 30;
const REPEATS: usize = 7;

/// 0 is success.
type Status = c_int;
type Handle = *mut c_void;

/// As cublas_api.h and library_types.h number them.
mod numbers {
    use std::ffi::c_int;

    pub const NOT_TRANSPOSED: c_int = 0;
    pub const TRANSPOSED: c_int = 1;
    pub const F32: c_int = 0;
    pub const BF16: c_int = 14;
    /// Binary32 throughout, without narrower formats for what is multiplied.
    pub const COMPUTE_F32: c_int = 68;
    pub const DEFAULT_ALGORITHM: c_int = -1;
}

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> Status;
type Multiply = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

/// The library on a GPU, loaded.
pub struct Cublas {
    handle: Handle,
    destroy: Destroy,
    multiply: Multiply,
    /// Where it was found.
    place: PathBuf,
}

impl fmt::Debug for Cublas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cublas({})", self.place.display())
    }
}

impl Cublas {
    /// Loads it from the folder that `SAE_CUBLAS` names, or from the loader's search path and the folders where NVRTC is looked
    /// for, and opens it on the GPU of `device`. It stays loaded.
    ///
    /// # Errors
    /// Where it was looked for and what was wrong there, in words.
    pub fn find(device: &Cuda) -> Result<Cublas, String> {
        let folders = match std::env::var_os(FOLDER).map(PathBuf::from) {
            Some(folder) => vec![folder],
            None => [PathBuf::new()].into_iter().chain(usual_folders()).collect(),
        };
        let mut looked = Vec::new();
        for path in folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name))) {
            match Cublas::open(&path, device) {
                Ok(cublas) => return Ok(cublas),
                Err(reason) => looked.push(reason),
            }
        }
        Err(looked.join("; "))
    }

    fn open(path: &Path, device: &Cuda) -> Result<Cublas, String> {
        let words = |error: libloading::Error| format!("{}: {error}", path.display());
        // SAFETY: cuBLAS runs only NVIDIA's initialisers, which ask nothing of the process.
        let library = unsafe { Library::new(path) }.map_err(words)?;
        // Never unloaded: it keeps what it made on the GPU.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: each name has the type that cublas_api.h declares for it, the same in 12 and 13.
        let (create, destroy, set_stream, multiply) = unsafe {
            (
                *library.get::<Create>(b"cublasCreate_v2").map_err(words)?,
                *library.get::<Destroy>(b"cublasDestroy_v2").map_err(words)?,
                *library.get::<SetStream>(b"cublasSetStream_v2").map_err(words)?,
                *library.get::<Multiply>(b"cublasGemmEx").map_err(words)?,
            )
        };
        let stream = &device.engine().stream;
        let bound = stream.context().bind_to_thread();
        bound.map_err(|error| format!("binding the thread: {error}"))?;
        let mut handle = ptr::null_mut();
        // SAFETY: it writes a handle to the address that it gets, for the context that was just bound.
        let status = unsafe { create(&mut handle) };
        if status != 0 {
            return Err(format!("{}: cublasCreate gives {status}", path.display()));
        }
        let cublas = Cublas { handle, destroy, multiply, place: path.to_owned() };
        // SAFETY: both belong to the same context, and the stream lives as long as the device's engine.
        match unsafe { set_stream(cublas.handle, stream.cu_stream().cast()) } {
            0 => Ok(cublas),
            status => Err(format!("{}: cublasSetStream gives {status}", path.display())),
        }
    }

    /// Where it was found.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// 10⁹ multiplications and additions a second of x · W_encᵀ, of a batch and a dictionary in their precision with sums in binary32, the
    /// cache flushed before each repeat: the best of several. Of as many features as a result of 2 GiB has room for. `small` where
    /// times mean nothing.
    ///
    /// # Errors
    /// In words: those of the library, [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn gemm_gflops<T: Send>(
        &self,
        device: &Cuda,
        of: &CudaDictionary<T>,
        x: &Rows,
        small: bool,
    ) -> Result<f64, String> {
        let words = |error: Error| error.to_string();
        let engine = device.engine();
        let (width, n) = (of.shape().width, x.n);
        let features = of.shape().features.min(MOST_VALUES / n.max(1)).max(1);
        let stride = of.buffers.weights.w_enc.stride;
        let (dtype, bytes) = match engine.precision {
            Precision::F32 => (numbers::F32, 4),
            Precision::Mixed(_) | Precision::Bf16Sr(_) => (numbers::BF16, 2),
        };
        let result_bf = GpuMemory::of(engine).step::<u8>(n * features * bytes, "a GEMM of cuBLAS").map_err(words)?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [m, columns, k, lead] = [features, n, width, stride].map(|number| number as c_int);
        let mut status = 0;
        let mut multiply = || {
            // To cuBLAS, which counts by columns, W_enc is [stride, F] and x is [stride, B]: result [F, B] = W_encᵀ · x.
            // SAFETY: both have as many rows as is said, each of `stride` values; the result has room; both factors are read
            // before the call returns.
            let gave = unsafe {
                (self.multiply)(
                    self.handle,
                    numbers::TRANSPOSED,
                    numbers::NOT_TRANSPOSED,
                    m,
                    columns,
                    k,
                    (&raw const one).cast(),
                    of.buffers.weights.w_enc.operand(0) as *const c_void,
                    dtype,
                    lead,
                    x.operand() as *const c_void,
                    dtype,
                    lead,
                    (&raw const zero).cast(),
                    result_bf.at(0) as *mut c_void,
                    dtype,
                    m,
                    numbers::COMPUTE_F32,
                    numbers::DEFAULT_ALGORITHM,
                )
            };
            if gave != 0 {
                status = gave;
            }
        };
        // The first one chooses and loads kernels.
        multiply();
        let mut watch = Stopwatch::new(device, small).map_err(words)?;
        for _ in 0..REPEATS {
            watch.time(&mut multiply).map_err(words)?;
        }
        let best_us = watch.take().map_err(words)?[0];
        if status != 0 {
            return Err(format!("cublasGemmEx gives {status}"));
        }
        Ok(2.0 * (n * features * width) as f64 / best_us / 1e3)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody has another copy of it.
        unsafe { (self.destroy)(self.handle) };
    }
}

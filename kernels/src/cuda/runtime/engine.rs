//! A GPU with its kernels and its streams: one that everything runs on, one that brings stored rows meanwhile, and where ranks share
//! features a third, on which x̂ is summed meanwhile.
//!
//! Operations are enqueued and return; what goes wrong is remembered and told by the next function that can fail, so that the
//! step stays free of error paths.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result::{launch_kernel, stream::get_priority_range};
use cudarc::driver::{CudaEvent, CudaFunction, CudaStream, DriverError, sys};

use super::gpu::{Gpu, failed, noted};
use super::launches::Launches;
use super::precision::Precision;
use crate::Error;
use crate::cuda::compile::sources::{EntryPoint, KernelSource};
use crate::cuda::ranks::communicator::{Communicator, Message};
use crate::first_error::FirstError;
use crate::mesh::Axes;
use crate::ranks::Group;

/// Shared memory of a block without asking for more.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// What the operations run on. A clone is the same GPU.
#[derive(Clone)]
pub struct Engine {
    /// `None`: one rank, with nothing to exchange. Dropped first: it waits for what others still receive.
    communicator: Option<Arc<Communicator>>,
    /// What is enqueued goes here.
    pub stream: Arc<CudaStream>,
    /// Copies of stored rows: see [`super::staging`].
    pub copies: Arc<CudaStream>,
    /// Sums of x̂: see [`crate::cuda::ranks::slices`]. `None` where there is nothing to sum.
    sums: Option<Arc<CudaStream>>,
    pub precision: Precision,
    pub multiprocessors: u32,
    /// Most shared memory of a block.
    pub shared_bytes: u32,
    pub axes: Axes,
    kernels: Arc<HashMap<&'static str, Kernel>>,
    failure: Arc<FirstError>,
    /// Off but in benchmarks.
    pub(crate) launches: Arc<Launches>,
}

struct Kernel {
    function: CudaFunction,
    /// The stem of its file.
    source: &'static str,
    /// Of a block: the kernel's launch bounds.
    threads: u32,
}

impl Engine {
    /// Loads the kernels of `sources` on `gpu`, and meets the GPUs of the other ranks of `axes`.
    ///
    /// # Errors
    /// Those of [`Gpu::load`] and [`Communicator::new`]; [`Error::Cuda`].
    pub fn new(gpu: &Gpu, precision: Precision, sources: &[KernelSource], axes: Axes) -> Result<Self, Error> {
        let context = gpu.context();
        // SAFETY: all memory is used on one stream, in order, but for that of stored rows and what x̂ is made of and from, where
        // events keep uses apart.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| failed("cuStreamCreate", error))?;
        let copies = context.new_stream().map_err(|error| failed("cuStreamCreate", error))?;
        // Of the highest priority: among equals the thousands of blocks of an encode that waits already would all go first.
        let first = || get_priority_range().and_then(|(_, highest)| context.new_stream_with_priority(highest));
        let sums = (axes.feature.size() > 1).then(first).transpose();
        let sums = sums.map_err(|error| failed("cuStreamCreateWithPriority", error))?;
        let mut kernels = HashMap::new();
        for (source, module) in sources.iter().zip(gpu.load(sources)?) {
            for EntryPoint { name, threads } in source.kernels() {
                let function = module.load_function(name).map_err(|error| failed(name, error))?;
                kernels.insert(name, Kernel { function, source: source.name(), threads });
            }
        }
        let (multiprocessors, shared_bytes) = (gpu.multiprocessors(), gpu.shared_bytes());
        let failure = Arc::new(FirstError::default());
        let several = axes.all.size() > 1;
        let communicator = several.then(|| Communicator::new(context, &axes.all, &failure)).transpose()?;
        let (communicator, kernels) = (communicator.map(Arc::new), Arc::new(kernels));
        let launches = Arc::default();
        Ok(Engine {
            communicator,
            stream,
            copies,
            sums,
            precision,
            multiprocessors,
            shared_bytes,
            axes,
            kernels,
            failure,
            launches,
        })
    }

    /// The same GPU, with the stream of sums under what is enqueued. The caller says by events what comes before what.
    pub fn of_sums(&self) -> Option<Engine> {
        self.sums.as_ref().map(|sums| Engine { stream: sums.clone(), ..self.clone() })
    }

    /// Lets a kernel use `bytes` of dynamic shared memory. Where that is much, all of the memory that shared memory and the L1 cache
    /// divide between them is to be shared memory: the driver, left to itself, may leave room for one block where two would fit.
    pub fn allow_shared(&self, kernel: &'static str, bytes: u32) {
        use sys::CUfunction_attribute_enum as Attribute;
        if bytes > SHARED_BY_DEFAULT {
            for (attribute, value) in [
                (Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as i32),
                (Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
            ] {
                self.note(kernel, self.kernel(kernel).function.set_attribute(attribute, value));
            }
        }
    }

    /// A place in a stream's order, none at first.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn event(&self) -> Result<CudaEvent, Error> {
        self.stream.context().new_event(None).map_err(|error| failed("cuEventCreate", error))
    }

    /// The stem of the file that holds a kernel.
    pub(crate) fn source_of(&self, kernel: &'static str) -> &'static str {
        self.kernel(kernel).source
    }

    fn kernel(&self, name: &'static str) -> &Kernel {
        self.kernels.get(name).unwrap_or_else(|| panic!("a kernel called {name} in kernels/cuda"))
    }

    /// Remembers a failure; the first one counts, what follows it is its consequence.
    pub fn note<T>(&self, call: &'static str, result: Result<T, DriverError>) -> Option<T> {
        noted(&self.failure, call, result)
    }

    /// Waits for all that was enqueued.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Nccl`] or [`Error::Peer`] with the first failure since the GPU was opened: after one nothing on
    /// the GPU can be trusted.
    pub fn wait(&self) -> Result<(), Error> {
        self.note("the operations before it", self.stream.synchronize());
        self.check()
    }

    /// [`Engine::wait`] without waiting.
    ///
    /// # Errors
    /// Those of [`Engine::wait`].
    pub fn check(&self) -> Result<(), Error> {
        self.failure.check()
    }

    /// See [`Communicator::exchanged`].
    pub fn exchanged(&self) -> (u64, Duration) {
        self.communicator.as_ref().map_or((0, Duration::ZERO), |communicator| communicator.exchanged())
    }

    /// Enqueues messages between this GPU and those of the members of `among`.
    ///
    /// # Safety
    /// That of [`Communicator::exchange`].
    pub unsafe fn exchange(&self, among: &Group, messages: &[Message]) {
        if let Some(communicator) = &self.communicator {
            // SAFETY: the caller's promise.
            unsafe { communicator.exchange(&self.stream, among, messages) };
        }
    }

    /// Enqueues `kernel` on `grid` blocks with `shared` bytes of dynamic shared memory; nothing is done on an empty grid.
    ///
    /// # Safety
    /// `arguments` (see [`arguments!`]) are those of the kernel, in type and order, and what they point to holds what its
    /// head says.
    pub unsafe fn enqueue(
        &self,
        kernel: &'static str,
        grid: impl Into<Grid>,
        shared: u32,
        mut arguments: impl AsMut<[Value]>,
    ) {
        let Grid(x, y) = grid.into();
        if x == 0 || y == 0 {
            return;
        }
        let Kernel { function, threads, .. } = self.kernel(kernel);
        let bound = self.note("binding the thread", self.stream.context().bind_to_thread());
        if bound.is_some() {
            let (function, stream) = (function.cu_function(), self.stream.cu_stream());
            let mut places: Vec<*mut c_void> =
                arguments.as_mut().iter_mut().map(|Value(words)| words.as_mut_ptr().cast()).collect();
            self.launches.around(&self.stream, &self.failure, kernel, || {
                let block = (*threads, 1, 1);
                // SAFETY: the caller's promise.
                let launched = unsafe { launch_kernel(function, (x, y, 1), block, shared, stream, &mut places) };
                self.note(kernel, launched);
            });
        }
    }
}

/// Blocks in x and y.
pub struct Grid(u32, u32);

impl From<usize> for Grid {
    fn from(blocks: usize) -> Self {
        Grid(blocks as u32, 1)
    }
}

impl From<(usize, usize)> for Grid {
    fn from((x, y): (usize, usize)) -> Self {
        Grid(x as u32, y as u32)
    }
}

/// A type that a kernel takes by value.
///
/// # Safety
/// It lies in memory as its counterpart in the device code.
pub unsafe trait Argument {}

// SAFETY: u32, u64 (and pointers), float.
unsafe impl Argument for u32 {}
// SAFETY: as above.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}

/// A value on its way to a kernel: the bytes of an [`Argument`], in a place that the driver can copy from.
pub struct Value([u64; 24]);

impl Value {
    pub fn new<T: Argument>(argument: T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<Value>() && align_of::<T>() <= align_of::<Value>()) };
        let mut value = Value([0; 24]);
        // SAFETY: there is room for a `T`, as was just asserted, and an argument is plain numbers.
        unsafe { value.0.as_mut_ptr().cast::<T>().write(argument) };
        value
    }
}

/// The arguments of a launch, in order.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        [$($crate::cuda::runtime::engine::Value::new($value)),*]
    };
}
pub(crate) use arguments;

//! NCCL, NVIDIA's library of collectives: finding it. What is done with it stands in `communicator.rs`.
//!
//! Types, constants and signatures are those of [`cudarc::nccl::sys`]. Its functions are not called: cudarc asks the loader for `libnccl.so`,
//! while packages without headers bring only `libnccl.so.2`; it takes no path; it panics where a function is missing; and it returns an
//! enum, in which a code of a newer NCCL would be undefined behaviour. So each function is looked up in the library that is opened here,
//! and returns a number.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use cudarc::nccl::sys::{self, cudaStream_t, ncclComm_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use libloading::Library;

use crate::Error;

/// File names, best first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The environment variable that names its folder.
const FOLDER: &str = "SAE_NCCL";

/// By which the ranks of a communicator know each other: one of them makes it and gives it to the others.
pub type UniqueId = [u8; 128];

/// An `ncclResult_t` as the library returns it: one of a newer version may be none of the enum's.
pub(crate) type Status = c_int;

/// Every call has begun or is done.
pub(crate) const SUCCESS: Status = ncclResult_t::ncclSuccess as Status;
/// A communicator has no error so far.
pub(crate) const IN_PROGRESS: Status = ncclResult_t::ncclInProgress as Status;

/// The library, loaded.
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    version: c_int,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Status,
    pub(crate) init: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Status,
    pub(crate) async_error: unsafe extern "C" fn(ncclComm_t, *mut Status) -> Status,
    pub(crate) destroy: unsafe extern "C" fn(ncclComm_t) -> Status,
    pub(crate) abort: unsafe extern "C" fn(ncclComm_t) -> Status,
    pub(crate) group_start: unsafe extern "C" fn() -> Status,
    pub(crate) group_end: unsafe extern "C" fn() -> Status,
    pub(crate) send:
        unsafe extern "C" fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Status,
    pub(crate) recv:
        unsafe extern "C" fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Status,
}

impl Nccl {
    /// Loads it from `folder`; without one from the folder that `SAE_NCCL` names; without that from the loader's search path. It
    /// stays loaded.
    ///
    /// # Errors
    /// [`Error::NoNccl`] says where it was looked for and what was wrong there.
    pub fn find(folder: Option<&Path>) -> Result<Nccl, Error> {
        let folder = folder.map(Path::to_owned).or_else(|| std::env::var_os(FOLDER).map(PathBuf::from));
        let mut looked = Vec::new();
        for name in NAMES {
            let path = folder.as_ref().map_or(PathBuf::from(name), |folder| folder.join(name));
            match load(&path) {
                Ok(nccl) => return Ok(nccl),
                Err(reason) => looked.push(reason),
            }
        }
        Err(Error::NoNccl { looked: looked.join("; ") })
    }

    /// Its version, as people write it: `2.27.3`.
    pub fn version(&self) -> String {
        let version = self.version;
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// A new id.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn unique_id(&self) -> Result<UniqueId, Error> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: it writes an id to the address that it gets.
        let status = unsafe { (self.unique_id)(&mut id) };
        self.result("ncclGetUniqueId", status).map(|()| id.internal.map(|byte| byte as u8))
    }

    pub(crate) fn result(&self, call: &'static str, status: Status) -> Result<(), Error> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: it gives a static text for every number.
        let words = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy().into_owned();
        Err(Error::Nccl { call, reason: words })
    }
}

/// The library at a path, or by a name on the loader's search path; or what is wrong with it.
fn load(path: &Path) -> Result<Nccl, String> {
    let place = path.display();
    // SAFETY: NCCL runs only NVIDIA's initialisers, which ask nothing of the process.
    let library = unsafe { Library::new(path) }.map_err(|error| format!("{place}: {error}"))?;
    // Never unloaded: it starts threads.
    let nccl = functions(Box::leak(Box::new(library)));
    let (nccl, status) = nccl.map_err(|error| format!("{place} is no NCCL, or one before 2.7: {error}"))?;
    nccl.result("ncclGetVersion", status).map(|()| nccl).map_err(|error| format!("{place}: {error}"))
}

/// A function of a library by its name, with the arguments that it has in cudarc, or this does not compile; it returns a number.
macro_rules! function {
    ($library:ident, $name:ident($($argument:ty),*)) => {{
        const _: unsafe fn($($argument),*) -> ncclResult_t = sys::$name;
        *$library.get::<unsafe extern "C" fn($($argument),*) -> Status>(stringify!($name).as_bytes())?
    }};
}

fn functions(library: &'static Library) -> Result<(Nccl, Status), libloading::Error> {
    type Sent = *const c_void;
    type Received = *mut c_void;
    // SAFETY: each name has the type that cudarc declares for it, the same since 2.7, in which send and recv came, but for the result,
    // which is a number in C; the library is never unloaded.
    unsafe {
        let version_function = function!(library, ncclGetVersion(*mut c_int));
        let mut version = 0;
        let status = version_function(&mut version);
        let nccl = Nccl {
            version,
            // The one function that is given a result, whatever its number.
            error_string: *library.get(b"ncclGetErrorString")?,
            unique_id: function!(library, ncclGetUniqueId(*mut ncclUniqueId)),
            init: function!(library, ncclCommInitRank(*mut ncclComm_t, c_int, ncclUniqueId, c_int)),
            // It writes a result, which is a number here too.
            async_error: *library.get(b"ncclCommGetAsyncError")?,
            destroy: function!(library, ncclCommDestroy(ncclComm_t)),
            abort: function!(library, ncclCommAbort(ncclComm_t)),
            group_start: function!(library, ncclGroupStart()),
            group_end: function!(library, ncclGroupEnd()),
            send: function!(library, ncclSend(Sent, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t)),
            recv: function!(library, ncclRecv(Received, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t)),
        };
        Ok((nccl, status))
    }
}

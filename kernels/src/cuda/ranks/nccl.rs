//! NCCL, NVIDIA's library of collectives: finding it. What is done with it stands in `communicator.rs`. Its functions are looked up here and not through cudarc, which asks the loader for
//! `libnccl.so`, while packages without headers bring only `libnccl.so.2`, panics where a function is missing, and knows a status
//! as an enum, which a code of a newer NCCL would not fit.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::Error;

/// File names, best first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The environment variable that names its folder.
const FOLDER: &str = "SAE_NCCL";

/// By which the ranks of a communicator know each other: one of them makes it and gives it to the others.
pub type UniqueId = [u8; 128];

/// As it is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Id(pub UniqueId);

/// 0 is success.
pub(crate) type Status = c_int;
pub(crate) type Comm = *mut c_void;
pub(crate) type Stream = *mut c_void;

/// The library, loaded.
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    version: c_int,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    pub(crate) init: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int) -> Status,
    pub(crate) async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    pub(crate) destroy: unsafe extern "C" fn(Comm) -> Status,
    pub(crate) abort: unsafe extern "C" fn(Comm) -> Status,
    pub(crate) group_start: unsafe extern "C" fn() -> Status,
    pub(crate) group_end: unsafe extern "C" fn() -> Status,
    pub(crate) send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> Status,
    pub(crate) recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> Status,
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
        let mut id = Id([0; 128]);
        // SAFETY: it writes an id to where it is told.
        let status = unsafe { (self.unique_id)(&mut id) };
        self.result("ncclGetUniqueId", status).map(|()| id.0)
    }

    pub(crate) fn result(&self, call: &'static str, status: Status) -> Result<(), Error> {
        if status == 0 {
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

fn functions(library: &'static Library) -> Result<(Nccl, Status), libloading::Error> {
    // SAFETY: each name has the type that nccl.h declares for it, the same since 2.7, in which send and recv came; the
    // library is never unloaded.
    unsafe {
        let version_function = library.get::<unsafe extern "C" fn(*mut c_int) -> Status>(b"ncclGetVersion")?;
        let mut version = 0;
        let status = version_function(&mut version);
        let nccl = Nccl {
            version,
            error_string: *library.get(b"ncclGetErrorString")?,
            unique_id: *library.get(b"ncclGetUniqueId")?,
            init: *library.get(b"ncclCommInitRank")?,
            async_error: *library.get(b"ncclCommGetAsyncError")?,
            destroy: *library.get(b"ncclCommDestroy")?,
            abort: *library.get(b"ncclCommAbort")?,
            group_start: *library.get(b"ncclGroupStart")?,
            group_end: *library.get(b"ncclGroupEnd")?,
            send: *library.get(b"ncclSend")?,
            recv: *library.get(b"ncclRecv")?,
        };
        Ok((nccl, status))
    }
}

//! NCCL, NVIDIA's library of collectives: finding it, and moving bytes between cards on the stream of their engine.
//!
//! It only moves bytes: sums over ranks are made by own kernels in the order of the ranks, so that the same mesh gives the
//! same bits whatever NCCL chooses. Its functions are looked up here and not through cudarc, which asks the loader for
//! `libnccl.so`, while packages without headers bring only `libnccl.so.2`, panics where a function is missing, and knows a status
//! as an enum, which a code of a newer NCCL would not fit.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use libloading::Library;

use super::card::failed;
use super::device::Cuda;
use super::engine::Engine;
use super::memory::{Buffer, Pointer};
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
struct Id(UniqueId);

/// 0 is success.
type Status = c_int;
type Comm = *mut c_void;
type Stream = *mut c_void;

/// `ncclUint8`: only bytes are moved.
const BYTES: c_int = 1;

/// `ncclInProgress`: no error so far.
const IN_PROGRESS: Status = 7;

/// The library, loaded.
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    version: c_int,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    init: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int) -> Status,
    async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    destroy: unsafe extern "C" fn(Comm) -> Status,
    abort: unsafe extern "C" fn(Comm) -> Status,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> Status,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> Status,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> Status,
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

    fn result(&self, call: &'static str, status: Status) -> Result<(), Error> {
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
            all_gather: *library.get(b"ncclAllGather")?,
        };
        Ok((nccl, status))
    }
}

/// One card among those of a job. Operations are enqueued on its engine's stream and return; what goes wrong is
/// remembered and told by [`Communicator::check`].
pub struct Communicator {
    nccl: Nccl,
    engine: Arc<Engine>,
    rank: usize,
    size: usize,
    state: Mutex<State>,
}

struct State {
    /// Null once it was aborted.
    comm: Comm,
    /// The first thing that went wrong.
    failure: Option<(&'static str, Status)>,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time: the mutex.
unsafe impl Send for State {}

impl Communicator {
    /// Waits until all `size` ranks are here with the same `id`, which one of them made.
    ///
    /// # Errors
    /// [`Error::Nccl`] and [`Error::Cuda`].
    ///
    /// # Panics
    /// When `rank` is not below `size`.
    pub fn new(nccl: Nccl, card: &Cuda, id: UniqueId, rank: usize, size: usize) -> Result<Self, Error> {
        assert!(rank < size, "a rank of the job");
        let engine = card.engine().clone();
        engine.stream.context().bind_to_thread().map_err(|error| failed("binding the thread", error))?;
        let mut comm = ptr::null_mut();
        // SAFETY: the communicator has a place, and this thread the context of its card.
        let status = unsafe { (nccl.init)(&mut comm, size as c_int, Id(id), rank as c_int) };
        nccl.result("ncclCommInitRank", status)?;
        Ok(Communicator { nccl, engine, rank, size, state: Mutex::new(State { comm, failure: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the values `sent[r]` of `from` to each rank `r`, and puts what it sends here to the places `received[r]` of `to`. Both
    /// sides of a pair name as many values.
    ///
    /// # Panics
    /// When there is not one range for each rank, or one is not inside its buffer.
    pub fn all_to_all<T: DeviceRepr + ValidAsZeroBits + Copy>(
        &self,
        from: &Buffer<T>,
        sent: &[Range<usize>],
        to: &mut Buffer<T>,
        received: &[Range<usize>],
    ) {
        assert!(sent.len() == self.size && received.len() == self.size, "a range for each rank");
        let sources: Vec<Bytes> = sent.iter().map(|range| bytes(from, range)).collect();
        let targets: Vec<Bytes> = received.iter().map(|range| bytes(to, range)).collect();
        self.enqueue("ncclSend and ncclRecv", |nccl, comm, stream| {
            // SAFETY: every group that is started is ended below.
            let mut statuses = vec![unsafe { (nccl.group_start)() }];
            for (peer, (source, target)) in sources.iter().zip(&targets).enumerate() {
                let peer = peer as c_int;
                // SAFETY: `bytes` has found both inside their buffers, and nothing frees those before the stream is done.
                statuses.extend(unsafe {
                    [
                        (nccl.send)(source.at as *const c_void, source.len, BYTES, peer, comm, stream),
                        (nccl.recv)(target.at as *mut c_void, target.len, BYTES, peer, comm, stream),
                    ]
                });
            }
            // SAFETY: the group was started.
            statuses.push(unsafe { (nccl.group_end)() });
            statuses.into_iter().find(|status| *status != 0).unwrap_or(0)
        });
    }

    /// Puts the first `len` values of every rank's `from` into `to`, in the order of the ranks.
    ///
    /// # Panics
    /// When a buffer is too short.
    pub fn all_gather<T: DeviceRepr + ValidAsZeroBits + Copy>(&self, from: &Buffer<T>, len: usize, to: &mut Buffer<T>) {
        let (source, target) = (bytes(from, &(0..len)), bytes(to, &(0..len * self.size)));
        self.enqueue("ncclAllGather", |nccl, comm, stream| {
            // SAFETY: `bytes` has found both inside their buffers, the target with room for every rank.
            unsafe {
                (nccl.all_gather)(source.at as *const c_void, target.at as *mut c_void, source.len, BYTES, comm, stream)
            }
        });
    }

    /// Calls NCCL unless something has failed, and remembers what goes wrong.
    fn enqueue(&self, call: &'static str, operation: impl FnOnce(&Nccl, Comm, Stream) -> Status) {
        let mut state = self.lock();
        let bound = self.engine.note("binding the thread", self.engine.stream.context().bind_to_thread());
        if state.failure.is_none() && !state.comm.is_null() && bound.is_some() {
            let status = operation(&self.nccl, state.comm, self.engine.stream.cu_stream().cast());
            state.failure = (status != 0).then_some((call, status));
        }
    }

    /// The first failure, of a call or since: a peer that died shows here, and not on the stream, which waits for it. Meant
    /// for a thread that looks now and then and, when it sees one, aborts.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn check(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if state.failure.is_none() && !state.comm.is_null() {
            let mut error = 0;
            // SAFETY: the communicator lives, and the number has a place.
            let status = unsafe { (self.nccl.async_error)(state.comm, &mut error) };
            let found = if status == 0 { error } else { status };
            state.failure = (found != 0 && found != IN_PROGRESS).then_some(("a collective", found));
        }
        match state.failure {
            Some((call, status)) => self.nccl.result(call, status),
            None if state.comm.is_null() => {
                Err(Error::Nccl { call: "a collective", reason: format!("rank {} was told to give up", self.rank) })
            }
            None => Ok(()),
        }
    }

    /// Ends what is under way on the stream, which would wait for ever for a rank that is gone. Nothing can follow.
    pub fn abort(&self) {
        let mut state = self.lock();
        let comm = std::mem::replace(&mut state.comm, ptr::null_mut());
        if !comm.is_null() {
            // SAFETY: it lives, and nobody finds it afterwards.
            unsafe { (self.nccl.abort)(comm) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Destroying waits for what was enqueued, which after a failure never ends.
        if self.check().is_err() {
            return self.abort();
        }
        // SAFETY: it lives, or the check would have failed, and nobody else has it any more.
        unsafe { (self.nccl.destroy)(self.lock().comm) };
    }
}

/// A part of a buffer.
struct Bytes {
    at: Pointer,
    len: usize,
}

fn bytes<T: DeviceRepr + ValidAsZeroBits + Copy>(buffer: &Buffer<T>, range: &Range<usize>) -> Bytes {
    assert!(range.start <= range.end && range.end <= buffer.len(), "values inside the buffer");
    Bytes { at: buffer.at(range.start), len: range.len() * size_of::<T>() }
}

//! The GPUs of a job: bytes between them, through NCCL.
//!
//! NCCL only moves bytes: sums over ranks are made by own kernels in the order of the ranks (`exchange.cu`), so that the same
//! mesh gives the same bits whatever NCCL chooses. An all-to-all and an all-gather are both messages between pairs, in one group.
//!
//! There is one communicator, and messages come from two streams: that of everything and that of sums of x̂ ([`super::slices`]). A
//! group of messages that has begun holds its place on the GPU until its peers come to the same group. So groups must begin in one
//! order on all ranks, or two GPUs wait for each other, or take one message for another; NCCL leaves that order to its callers. The
//! host enqueues groups in the same order on all ranks, and an event behind each, for which the next one waits when its stream is
//! another, makes that the order on the GPU too, whatever else lies between them.
//!
//! GPUs wait for each other without end, and NCCL does not know whether a process lives. The ranks' host group does: a thread
//! asks it ten times a second, and ends what the GPU waits for when a rank has failed.
//!
//! It notes the failure, which has a name, and aborts the communicator: the streams run to their end, and the next report is that
//! failure.

use std::collections::VecDeque;
use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, sys};
use cudarc::nccl::sys::{cudaStream_t, ncclComm, ncclComm_t, ncclDataType_t, ncclUniqueId};

use super::nccl::{IN_PROGRESS, Nccl, Status, UniqueId};
use crate::Error;
use crate::cuda::runtime::gpu::failed;
use crate::cuda::runtime::pointer::Part;
use crate::first_error::FirstError;
use crate::ranks::{self, Group};

/// Only bytes are moved.
const BYTES: ncclDataType_t = ncclDataType_t::ncclUint8;

/// Between two looks at the ranks.
const LOOK: Duration = Duration::from_millis(100);
/// What NCCL says of a rank that is gone has no name: so long the host group may take to find one.
const NAMED_WITHIN: Duration = Duration::from_secs(2);
/// How long ending waits for a call of another thread to return.
const CALL: Duration = Duration::from_secs(1);

/// What a member of a group is sent, and what it sends here. Both sides name their messages to each other in the same order and
/// with the same lengths; one of no bytes is none.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub member: usize,
    pub sent: Part,
    pub received: Part,
}

/// One GPU among those of a job. Messages are enqueued and return; what goes wrong is noted in the engine's [`FirstError`].
#[derive(Debug)]
pub struct Communicator {
    shared: Arc<Shared>,
    timer: Mutex<Timer>,
    /// Dropped, it ends the thread.
    leave: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

/// What was sent, and how long it took.
#[derive(Debug, Default)]
struct Timer {
    /// Of the last messages.
    stream: Option<Arc<CudaStream>>,
    /// Before and behind messages that may be on their way, in their order.
    under_way: VecDeque<[CudaEvent; 2]>,
    /// Of messages that are done, for others.
    free: Vec<[CudaEvent; 2]>,
    sent: u64,
    time: Duration,
}

impl Timer {
    /// Counts the messages that are done, without waiting for others.
    fn settle(&mut self) {
        while let Some([from, to]) = self.under_way.pop_front_if(|[_, to]| to.is_complete()) {
            // A GPU that has failed has no times, and tells so elsewhere.
            self.time += from.elapsed_ms(&to).map_or(Duration::ZERO, |ms| Duration::from_secs_f32(ms.max(0.0) / 1e3));
            self.free.push([from, to]);
        }
    }

    fn events(&mut self, context: &Arc<CudaContext>) -> Result<[CudaEvent; 2], DriverError> {
        let new = || context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        self.free.pop().map_or_else(|| Ok([new()?, new()?]), Ok)
    }
}

#[derive(Debug)]
struct Shared {
    nccl: Nccl,
    context: Arc<CudaContext>,
    all: Group,
    failure: Arc<FirstError>,
    /// Null once it was ended.
    comm: AtomicPtr<ncclComm>,
    /// NCCL lets any thread use a communicator, one at a time.
    calling: Mutex<()>,
}

impl Communicator {
    /// Waits until all ranks are here with the same id, which the first of them makes.
    ///
    /// # Errors
    /// [`Error::NoNccl`], [`Error::Nccl`], [`Error::Cuda`], [`Error::Threads`]; [`Error::Peer`] when another rank fails meanwhile.
    pub fn new(context: &Arc<CudaContext>, all: &Group, failure: &Arc<FirstError>) -> Result<Self, Error> {
        let nccl = Nccl::find(None)?;
        let made = if all.index() == 0 { nccl.unique_id()?.to_vec() } else { Vec::new() };
        let id = UniqueId::try_from(all.gather(&made)?.swap_remove(0)).map_err(|other| {
            let reason = format!("sent {} bytes for an id of NCCL: all ranks must run the same program", other.len());
            Error::Peer { rank: all.members()[0], operation: "meeting of GPUs", reason, code: None }
        })?;
        let shared = Arc::new(Shared {
            nccl,
            context: context.clone(),
            all: all.clone(),
            failure: failure.clone(),
            comm: meet(nccl, context.clone(), all, id)?,
            calling: Mutex::new(()),
        });
        let (leave, left) = channel();
        let watching = shared.clone();
        let watch = thread::Builder::new().name("gpus".to_owned()).spawn(move || watching.watch(&left));
        let watch = watch.map_err(Error::threads)?;
        Ok(Communicator { shared, timer: Mutex::default(), leave: Some(leave), watch: Some(watch) })
    }

    /// Bytes that were sent, and the time that messages took on their streams as far as they are done, waiting for others included.
    pub fn exchanged(&self) -> (u64, Duration) {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        timer.settle();
        (timer.sent, timer.time)
    }

    /// Enqueues messages to and from members of `among`, behind those enqueued before on any stream; those to itself are left out.
    ///
    /// # Safety
    /// The parts lie on this GPU, parts that are received overlap no others, and nothing frees them before the stream is done.
    pub unsafe fn exchange(&self, stream: &Arc<CudaStream>, among: &Group, messages: &[Message]) {
        let own = among.index();
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        timer.settle();
        let on_another = timer.stream.replace(stream.clone()).is_some_and(|before| before != *stream);
        // Messages that are done are not waited for.
        if let Some([_, behind]) = timer.under_way.back().filter(|_| on_another) {
            self.shared.note("waiting for messages", stream.wait(behind));
        }
        timer.sent += messages.iter().filter(|to| to.member != own).map(|to| to.sent.bytes as u64).sum::<u64>();
        let events = timer.events(&self.shared.context).and_then(|events| events[0].record(stream).map(|()| events));
        self.shared.call("ncclSend and ncclRecv", |nccl, comm| {
            let stream: cudaStream_t = stream.cu_stream().cast();
            // SAFETY: every group that is started is ended below.
            let mut statuses = vec![unsafe { (nccl.group_start)() }];
            for Message { member, sent, received } in messages.iter().filter(|message| message.member != own) {
                let peer = among.members()[*member] as c_int;
                if sent.bytes > 0 {
                    // SAFETY: the caller's promise.
                    statuses.push(unsafe { (nccl.send)(sent.at as *const _, sent.bytes, BYTES, peer, comm, stream) });
                }
                if received.bytes > 0 {
                    let (at, bytes) = (received.at as *mut _, received.bytes);
                    // SAFETY: the caller's promise.
                    statuses.push(unsafe { (nccl.recv)(at, bytes, BYTES, peer, comm, stream) });
                }
            }
            // SAFETY: the group was started.
            statuses.push(unsafe { (nccl.group_end)() });
            statuses.into_iter().find(|status| *status != 0).unwrap_or(0)
        });
        match events.and_then(|events| events[1].record(stream).map(|()| events)) {
            Ok(events) => timer.under_way.push_back(events),
            Err(error) => self.shared.note("an event", Err(error)),
        }
    }
}

/// Makes the communicator on a thread of its own: NCCL waits for ranks that never come, and this thread hears of them.
fn meet(nccl: Nccl, context: Arc<CudaContext>, all: &Group, id: UniqueId) -> Result<AtomicPtr<ncclComm>, Error> {
    let (size, rank) = (all.size() as c_int, all.index() as c_int);
    let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
    let (sender, made) = channel();
    let make = move || {
        context.bind_to_thread().map_err(|error| failed("binding the thread", error))?;
        let mut comm: ncclComm_t = ptr::null_mut();
        // SAFETY: the communicator has a place, and this thread the context of its GPU.
        let status = unsafe { (nccl.init)(&mut comm, size, id, rank) };
        nccl.result("ncclCommInitRank", status).map(|()| AtomicPtr::new(comm))
    };
    // Nobody listens any more when another rank has failed: the process then ends with that.
    let thread = thread::Builder::new().name("meet-gpus".to_owned()).spawn(move || drop(sender.send(make())));
    thread.map_err(Error::threads)?;
    loop {
        match made.recv_timeout(LOOK) {
            Ok(made) => return made,
            Err(RecvTimeoutError::Timeout) => all.check()?,
            Err(RecvTimeoutError::Disconnected) => {
                let reason = "the thread that called it has ended".to_owned();
                return Err(Error::Nccl { call: "ncclCommInitRank", reason });
            }
        }
    }
}

impl Shared {
    /// Calls NCCL unless the communicator was ended, and notes what goes wrong.
    fn call(&self, call: &'static str, operation: impl FnOnce(&Nccl, ncclComm_t) -> Status) {
        let _calling = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        let comm = self.comm.load(Ordering::Acquire);
        if comm.is_null() {
            return;
        }
        let bound = self.context.bind_to_thread().map_err(|error| failed("binding the thread", error));
        let done = bound.and_then(|()| self.nccl.result(call, operation(&self.nccl, comm)));
        if let Err(error) = done {
            self.failure.note(error);
        }
    }

    fn note(&self, call: &'static str, result: Result<(), DriverError>) {
        if let Err(error) = result {
            self.failure.note(failed(call, error));
        }
    }

    /// Looks at the ranks until the communicator is dropped or one has failed.
    fn watch(&self, left: &Receiver<()>) {
        let mut since: Option<Instant> = None;
        while left.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = self.all.check() {
                self.failure.note(error);
                return self.end();
            }
            let Err(error) = self.asynchronous() else { continue };
            if since.get_or_insert_with(Instant::now).elapsed() > NAMED_WITHIN {
                self.all.abort(ranks::Failure::seen(self.all.index(), error.to_string()));
                self.failure.note(error);
                return self.end();
            }
        }
    }

    /// What has gone wrong on the way since a call returned.
    fn asynchronous(&self) -> Result<(), Error> {
        // A caller from now on gets it from that call.
        let Ok(_calling) = self.calling.try_lock() else { return Ok(()) };
        let (comm, mut error) = (self.comm.load(Ordering::Acquire), 0);
        if comm.is_null() {
            return Ok(());
        }
        // SAFETY: the communicator lives, and the number has a place.
        let status = unsafe { (self.nccl.async_error)(comm, &mut error) };
        let found = if status == 0 { error } else { status };
        if found == IN_PROGRESS { Ok(()) } else { self.nccl.result("a message between GPUs", found) }
    }

    /// Ends what is under way on the stream. Nothing can follow.
    fn end(&self) {
        let since = Instant::now();
        // A call that connects to a rank that is gone never returns: it is ended too, and its result after that is reported to
        // nobody, since the cause is known.
        let _calling = loop {
            match self.calling.try_lock() {
                Err(TryLockError::WouldBlock) if since.elapsed() < CALL => thread::sleep(Duration::from_millis(10)),
                locked => break locked,
            }
        };
        let comm = self.comm.swap(ptr::null_mut(), Ordering::AcqRel);
        if !comm.is_null() {
            // SAFETY: it lives, and nobody finds it afterwards.
            unsafe { (self.nccl.abort)(comm) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(watch) = self.watch.take() {
            // A thread that panicked has said so.
            let _ = watch.join();
        }
        // Destroying waits for what was enqueued, which after a failure never ends.
        if self.shared.failure.check().is_err() || self.shared.all.check().is_err() {
            return self.shared.end();
        }
        self.shared.call("ncclCommDestroy", |nccl, comm| {
            // SAFETY: it lives, and nobody uses it after this value.
            unsafe { (nccl.destroy)(comm) }
        });
    }
}

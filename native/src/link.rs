//! What every object that Python holds shares with its door: the way back to the door's thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jotd_door::grpc::{PREFIX_BYTES, Status, prefix};
use jotd_door::queue::{Command, Core, Message};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyString};

use crate::gathered::{Gathered, Spent};

/// Answers up to this size are copied together with their prefix; of larger ones the Python object
/// itself is kept until it was sent.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Commands after which the door's thread is woken within a batch, so that it works alongside.
const WAKE_EVERY: usize = 32;
/// Spent objects after which no further list of them is let go in one turn: more than a turn makes.
const SPENT_MAX: usize = 8192;

/// Totals of one method. Written under the interpreter lock only.
#[derive(Default)]
pub struct MethodCounts {
    pub started: AtomicU64,
    pub received: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent: AtomicU64,
    pub sent_bytes: AtomicU64,
    /// Ended calls, by status code.
    pub codes: [AtomicU64; 17],
}

/// Adds to a counter that only one thread at a time writes.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// See the module.
pub struct Link {
    pub core: Arc<Core>,
    /// Names of the methods, each one object for ever.
    pub methods: Vec<Py<PyString>>,
    pub counts: Vec<MethodCounts>,
    /// Commands of this batch, which the door's thread cannot see yet: it takes the lock of what it
    /// can see, and need not wait for one that is held a thousand times a batch.
    batch: Mutex<Vec<Command>>,
    /// The loop is in its turn and will flush at its end.
    in_turn: AtomicBool,
    /// A flush is on its way.
    scheduled: AtomicBool,
    /// Schedules a call of `Door.flush` on the loop.
    schedule: Mutex<Option<Py<PyAny>>>,
    /// Python objects that the door's thread is done with.
    spent: Spent,
    /// The message that was sent last on a stream, until `flush`: an event goes to many of them as
    /// one and the same object, and is framed once.
    last: Mutex<Option<(Py<PyBytes>, Bytes)>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub fn new(core: Arc<Core>, methods: Vec<Py<PyString>>) -> Link {
        let counts = methods.iter().map(|_| MethodCounts::default()).collect();
        Link {
            core,
            methods,
            counts,
            batch: Mutex::default(),
            in_turn: AtomicBool::new(false),
            scheduled: AtomicBool::new(false),
            schedule: Mutex::new(None),
            spent: Arc::default(),
            last: Mutex::default(),
        }
    }

    pub fn set_schedule(&self, schedule: Option<Py<PyAny>>) {
        *lock(&self.schedule) = schedule;
    }

    /// A turn begins: `flush` will be called at its end.
    pub fn begin_turn(&self) {
        self.in_turn.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Everything pushed so far is seen to.
    pub fn flush(&self) {
        self.in_turn.store(false, Ordering::Relaxed);
        self.scheduled.store(false, Ordering::Relaxed);
        self.wake();
        let last = lock(&self.last).take();
        drop(last);
    }

    /// Lets go of what was sent; of the parts of a long answer a few thousand at a time (I9).
    pub fn tidy(&self, py: Python<'_>) {
        let mut spent = lock(&self.spent);
        let mut objects = 0;
        let fitting = spent.iter().rev().take_while(|list| {
            let fits = objects < SPENT_MAX;
            objects += list.len();
            fits
        });
        let rest = spent.len() - fitting.count();
        let batches = spent.split_off(rest);
        drop(spent);
        drop(batches);
        if rest > 0 && !self.scheduled.swap(true, Ordering::Relaxed) {
            self.call_schedule(py);
        }
    }

    /// Lets go of all of it.
    pub fn forget(&self) {
        let spent = std::mem::take(&mut *lock(&self.spent));
        drop(spent);
    }

    fn wake(&self) {
        let mut batch = lock(&self.batch);
        if !batch.is_empty() {
            self.core.push(&mut batch);
            drop(batch);
            self.core.wake();
        }
    }

    /// Pushes a command, and sees to it that it will be noticed.
    pub fn push(&self, py: Python<'_>, command: Command) {
        let mut batch = lock(&self.batch);
        batch.push(command);
        let full = batch.len() >= WAKE_EVERY;
        drop(batch);
        if full {
            self.wake();
            return;
        }
        if self.in_turn.load(Ordering::Relaxed) || self.scheduled.swap(true, Ordering::Relaxed) {
            return;
        }
        self.call_schedule(py);
    }

    fn call_schedule(&self, py: Python<'_>) {
        let schedule = lock(&self.schedule).as_ref().map(|call| call.clone_ref(py));
        if schedule.is_none_or(|call| call.call0(py).is_err()) {
            // No loop, or a closed one: then at once.
            self.flush();
        }
    }

    /// Pushes a command from where there may be no interpreter lock. Rare: it wakes at once.
    pub fn push_now(&self, command: Command) {
        lock(&self.batch).push(command);
        self.wake();
    }

    /// A message of Python's, framed if that is cheap.
    pub fn message(&self, message: &Bound<'_, PyBytes>) -> Message {
        let bytes = message.as_bytes();
        if bytes.len() <= COPY_BYTES_MAX
            && let Some(prefix) = prefix(bytes.len())
        {
            let mut framed = Vec::with_capacity(PREFIX_BYTES + bytes.len());
            framed.extend_from_slice(&prefix);
            framed.extend_from_slice(bytes);
            return Message { bytes: Bytes::from(framed), framed: true };
        }
        Message { bytes: self.keep(message), framed: false }
    }

    /// The same for a stream, which may have sent the very same object just before.
    pub fn stream_message(&self, message: &Bound<'_, PyBytes>) -> Message {
        let mut last = lock(&self.last);
        if let Some((object, bytes)) = &*last
            && object.is(message)
        {
            return Message { bytes: bytes.clone(), framed: true };
        }
        let made = self.message(message);
        if made.framed {
            *last = Some((message.clone().unbind(), made.bytes.clone()));
        }
        made
    }

    /// The bytes of a Python object, which lives until they were sent.
    pub fn keep(&self, object: &Bound<'_, PyBytes>) -> Bytes {
        let bytes = Some(PyBackedBytes::from(object.clone()));
        Bytes::from_owner(Held { bytes, spent: Arc::clone(&self.spent) })
    }

    /// The begin of a long answer.
    pub fn gathered(&self) -> Gathered {
        Gathered::new(Arc::clone(&self.spent))
    }
}

struct Held {
    bytes: Option<PyBackedBytes>,
    spent: Spent,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // On whichever thread this is.
        if let Some(bytes) = self.bytes.take() {
            lock(&self.spent).push(vec![bytes]);
        }
    }
}

/// A status of Python's. Codes that do not exist are Unknown.
pub fn status(code: u8, message: String) -> Status {
    Status::new(if code <= 16 { code } else { 2 }, message)
}

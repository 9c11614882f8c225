//! The two queues between the door's thread and the one that runs Python.
//!
//! Each side takes everything that is there in one go, and wakes the other only if that one waits:
//! one wake-up then serves a whole batch.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use http::HeaderMap;

use crate::data::Parts;
use crate::grpc::Status;
use crate::options::Limits;
use crate::stats::Stats;

/// Names a call or stream to the door's thread. A key is never used twice within any sane time.
pub type Key = u64;

/// Index into the table of methods that the door was started with.
pub type Method = u16;

/// The other end of a connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// "127.0.0.1:5000", or empty for a unix socket.
    pub address: String,
    /// Names in the certificate that it showed: the subject's common name first, if there is one.
    pub certificate_names: Vec<String>,
    /// The subject's common name in that certificate.
    pub common_name: Option<String>,
}

/// What is known of a call or stream apart from its messages.
pub struct Meta {
    /// Which method.
    pub method: Method,
    /// Who asks.
    pub peer: Arc<Peer>,
    /// Metadata.
    pub headers: HeaderMap,
    /// The client gave up, its deadline passed, or its connection is gone.
    pub cancelled: AtomicBool,
}

impl Meta {
    /// The first value of a metadata key (lower case), if it is text.
    pub fn metadata(&self, key: &str) -> Option<Cow<'_, str>> {
        self.headers.get(key).map(|value| String::from_utf8_lossy(value.as_bytes()))
    }
}

/// Room of a stream, kept from both sides.
pub struct Room {
    /// Twice the bytes that are queued, and one more while it is full. In one word, or either side
    /// could act on bytes of the other's and a mark from before them: there would be no room, and
    /// nobody would be told when there is again.
    state: AtomicI64,
    limit: i64,
}

impl Room {
    /// Room for `limit` bytes.
    pub fn new(limit: usize) -> Room {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Room { state: AtomicI64::new(0), limit }
    }

    /// Bytes that may be queued before the client has to catch up.
    pub fn left(&self) -> i64 {
        self.limit - queued(self.state.load(Ordering::SeqCst))
    }

    /// Python queues bytes.
    pub fn fill(&self, n: usize) {
        self.change(n as i64, |state| is_full(state) || queued(state) >= self.limit);
    }

    /// HTTP/2 took bytes. True if there is room again after there was none.
    pub fn drain(&self, n: usize) -> bool {
        let full = |state| is_full(state) && queued(state) > self.limit / 2;
        let (before, after) = self.change(-(n as i64), full);
        is_full(before) && !is_full(after)
    }

    /// True from when there was no room until `drain` has told that there is.
    pub fn is_full(&self) -> bool {
        is_full(self.state.load(Ordering::SeqCst))
    }

    /// Adds bytes, then sees with `full` whether it is full; the states before and after.
    fn change(&self, n: i64, full: impl Fn(i64) -> bool) -> (i64, i64) {
        let mut before = self.state.load(Ordering::SeqCst);
        loop {
            let moved = before + 2 * n;
            let after = (moved & !1) | i64::from(full(moved));
            match self.state.compare_exchange_weak(
                before,
                after,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return (before, after),
                Err(now) => before = now,
            }
        }
    }
}

fn queued(state: i64) -> i64 {
    state >> 1
}

fn is_full(state: i64) -> bool {
    state & 1 == 1
}

/// A unary call with its request.
pub struct InCall {
    /// For the answer.
    pub key: Key,
    /// What is known of it.
    pub meta: Arc<Meta>,
    /// The message.
    pub request: Bytes,
}

/// Anything else that happens.
pub enum Event {
    /// A stream was opened.
    Opened {
        /// Names it in all later events and commands.
        key: Key,
        /// What is known of it.
        meta: Arc<Meta>,
        /// Its room.
        room: Arc<Room>,
    },
    /// Messages of a stream, in order.
    Messages {
        /// The stream.
        key: Key,
        /// The messages.
        messages: Vec<Bytes>,
        /// For `Command::Taken`: what the client may send again then.
        credit: usize,
    },
    /// The client will send no more on this stream.
    HalfClosed {
        /// The stream.
        key: Key,
    },
    /// There is room again.
    Room {
        /// The stream.
        key: Key,
    },
    /// The stream is over, whoever ended it; the last event of its key.
    Closed {
        /// The stream.
        key: Key,
    },
    /// A call of a method that does not exist; wants a `Command::Fail`.
    Unknown {
        /// For the answer.
        key: Key,
        /// The path, as it was sent.
        path: String,
    },
    /// An HTTP request that is not gRPC; wants a `Command::Http`.
    Http {
        /// For the answer.
        key: Key,
        /// The request.
        request: Box<HttpRequest>,
    },
    /// Everything is answered and closed, or all clients that are left have no calls.
    Drained,
}

/// An HTTP request that is not gRPC.
pub struct HttpRequest {
    /// GET, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By lower-case name.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// Who asks.
    pub peer: Arc<Peer>,
}

/// A gRPC message on its way out.
pub struct Message {
    /// The bytes; with the prefix, if `framed`.
    pub bytes: Bytes,
    /// Whether the prefix is there already.
    pub framed: bool,
}

/// What Python wants done.
pub enum Command {
    /// Answer a unary call.
    Answer(Key, Message),
    /// Answer a unary call with a message in parts, without its prefix.
    AnswerParts(Key, Box<dyn Parts>),
    /// Answer a unary call, or one of an unknown method, with an error.
    Fail(Key, Status),
    /// Send a message on a stream.
    Send(Key, Message),
    /// End a stream behind what was sent.
    Close(Key, Status),
    /// So many bytes of a stream's messages were taken: the client may send as many.
    Taken(Key, usize),
    /// Answer an HTTP request.
    Http(Key, Box<HttpAnswer>),
    /// Take no new connection, and tell clients to go elsewhere.
    Drain,
    /// Close everything and end the thread.
    Stop,
}

/// The answer to an HTTP request.
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// Only its length is sent: the request was a HEAD.
    pub bare: bool,
}

/// What has come in and was not taken.
#[derive(Default)]
struct Inbox {
    calls: VecDeque<InCall>,
    events: VecDeque<Event>,
    /// Python waits for the file descriptor.
    armed: bool,
}

/// What both sides hold on to.
pub struct Core {
    /// Limits.
    pub limits: Limits,
    /// Counters.
    pub stats: Stats,
    inbox: Mutex<Inbox>,
    signal: OwnedFd,
    signalled: AtomicBool,
    outbox: Mutex<Vec<Command>>,
    waker: Mutex<Option<Waker>>,
    wanted: AtomicBool,
    /// In one order with `paused`, like the bytes: each side writes one and then looks at the other.
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Reading has stopped until Python has caught up.
    paused: AtomicBool,
}

/// Bytes of all messages.
fn weight(calls: &[InCall], events: &[Event]) -> usize {
    let requests = calls.iter().map(|call| call.request.len());
    let others = events.iter().map(|event| match event {
        Event::Messages { messages, .. } => messages.iter().map(Bytes::len).sum(),
        Event::Http { request, .. } => request.body.len(),
        _ => 0,
    });
    requests.chain(others).sum()
}

/// Nobody panics while holding a lock here; if somebody did, the data would still be whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(crate) fn new(limits: Limits) -> io::Result<Core> {
        use rustix::event::{EventfdFlags, eventfd};
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Core {
            limits,
            stats: Stats::default(),
            inbox: Mutex::new(Inbox { armed: true, ..Inbox::default() }),
            signal,
            signalled: AtomicBool::new(false),
            outbox: Mutex::new(Vec::new()),
            waker: Mutex::new(None),
            wanted: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
        })
    }

    // -- the Python side -------------------------------------------------------------------

    /// Readable when there is something to take.
    pub fn signal(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }

    /// Moves what has come in to `calls` and `events`, at most `max` of each, and no more calls
    /// once their requests are `bytes` long. If nothing was there the file descriptor becomes
    /// readable with the next.
    pub fn take(&self, max: usize, bytes: usize, calls: &mut Vec<InCall>, events: &mut Vec<Event>) {
        if self.signalled.swap(false, Ordering::SeqCst) {
            let mut count = [0; 8];
            if rustix::io::read(&self.signal, &mut count).is_err() {
                // The other side has announced its signal and not given it: look again next time.
                self.signalled.store(true, Ordering::SeqCst);
            }
        }
        let mut inbox = lock(&self.inbox);
        let mut ready = 0;
        let mut left = bytes;
        for call in inbox.calls.iter().take(max) {
            ready += 1;
            if call.request.len() >= left {
                break;
            }
            left -= call.request.len();
        }
        calls.extend(inbox.calls.drain(..ready));
        let ready = inbox.events.len().min(max);
        events.extend(inbox.events.drain(..ready));
        if calls.is_empty() && events.is_empty() {
            inbox.armed = true;
        }
        drop(inbox);
        self.waiting.fetch_sub(calls.len() + events.len(), Ordering::SeqCst);
        self.waiting_bytes.fetch_sub(weight(calls, events), Ordering::SeqCst);
        if self.paused.load(Ordering::SeqCst) && !self.is_full() {
            self.wake();
        }
    }

    /// Queues commands, to be noticed with the next `wake`.
    pub fn push(&self, commands: &mut Vec<Command>) {
        lock(&self.outbox).append(commands);
    }

    /// Has the door's thread see what was pushed.
    pub fn wake(&self) {
        if !self.wanted.swap(true, Ordering::SeqCst)
            && let Some(waker) = &*lock(&self.waker)
        {
            waker.wake_by_ref();
        }
    }

    // -- the door's side -------------------------------------------------------------------

    /// Whom `wake` wakes.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let mut slot = lock(&self.waker);
        if !slot.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Everything that was pushed; `into` is empty and its memory is used again.
    pub(crate) fn commands(&self, into: &mut Vec<Command>) {
        self.wanted.store(false, Ordering::SeqCst);
        std::mem::swap(&mut *lock(&self.outbox), into);
    }

    /// Hands over what has come in.
    pub(crate) fn publish(&self, calls: &mut Vec<InCall>, events: &mut Vec<Event>) {
        if calls.is_empty() && events.is_empty() {
            return;
        }
        self.waiting.fetch_add(calls.len() + events.len(), Ordering::SeqCst);
        self.waiting_bytes.fetch_add(weight(calls, events), Ordering::SeqCst);
        let mut inbox = lock(&self.inbox);
        inbox.calls.extend(calls.drain(..));
        inbox.events.extend(events.drain(..));
        let wake = std::mem::take(&mut inbox.armed);
        drop(inbox);
        if wake {
            Stats::count(&self.stats.wakes_total);
            // Announced first, so that the other side never finds a signal that it does not clear.
            self.signalled.store(true, Ordering::SeqCst);
            // It can only fail if 2^64 - 1 wake-ups were not read: then it is readable.
            let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
        }
    }

    /// True while Python has so much to do that no more is read.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) >= self.limits.waiting_max
            || self.waiting_bytes.load(Ordering::SeqCst) >= self.limits.waiting_bytes_max
    }

    /// Says that somebody waits for `is_full` to end.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_once_when_it_comes_back() {
        let room = Room::new(100);
        room.fill(99);
        assert_eq!(room.left(), 1);
        assert!(!room.drain(99), "it was never full");
        room.fill(150);
        assert!(room.is_full());
        assert_eq!(room.left(), -50);
        assert!(!room.drain(99));
        assert!(room.drain(1));
        assert!(!room.drain(50));
        assert!(!room.is_full());
    }

    #[test]
    fn room_that_is_filled_while_it_drains_stays_full() {
        // Whichever comes first, it is full in the end, and will tell when it is not.
        let room = Room::new(100);
        room.fill(100);
        let start = std::sync::Barrier::new(2);
        let end = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    start.wait();
                    room.drain(100);
                    end.wait();
                }
            });
            for _ in 0..10_000 {
                start.wait();
                room.fill(100);
                end.wait();
                assert_eq!((room.left(), room.is_full()), (0, true));
            }
        });
        assert!(room.drain(100));
    }

    #[test]
    fn the_reader_is_woken_once_a_batch() {
        let core = Core::new(Limits::default()).unwrap();
        let opened = |key| Event::HalfClosed { key };
        for key in 0..3 {
            core.publish(&mut Vec::new(), &mut vec![opened(key)]);
        }
        assert_eq!(core.stats.wakes_total.load(Ordering::Relaxed), 1);
        let (mut calls, mut events) = (Vec::new(), Vec::new());
        core.take(10, 1 << 20, &mut calls, &mut events);
        assert_eq!(events.len(), 3);
        // Taken, but not asked again whether there is more: awake still.
        core.publish(&mut Vec::new(), &mut vec![opened(9)]);
        assert_eq!(core.stats.wakes_total.load(Ordering::Relaxed), 1);
        events.clear();
        core.take(10, 1 << 20, &mut calls, &mut events);
        assert_eq!(events.len(), 1);
        events.clear();
        core.take(10, 1 << 20, &mut calls, &mut events);
        core.publish(&mut Vec::new(), &mut vec![opened(9)]);
        assert_eq!(core.stats.wakes_total.load(Ordering::Relaxed), 2);
    }
}

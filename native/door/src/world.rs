//! Everything that the door's thread has in hand: connections, live calls, deadlines.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;

use crate::live::Entry;
use crate::options::{Kind, Options};
use crate::queue::{Core, Event, InCall, Key, Method, Peer, lock};
use crate::stats::Stats;
use crate::wheel::Wheel;
use crate::wire::Wire;

/// Bytes that one read takes at most.
const READ_BYTES: usize = 64 << 10;
/// One tick of the deadlines' wheel.
const TICK_MS: u64 = 4;

/// The state of the door's thread. Every method runs on it; no borrow is held across a wake-up.
pub(crate) struct World {
    pub core: Arc<Core>,
    pub methods: HashMap<Box<str>, (Method, Kind)>,
    pub live: RefCell<Slab<Entry>>,
    pub wheel: RefCell<Wheel>,
    pub conns: RefCell<Slab<Rc<Conn>>>,
    pub scratch: RefCell<Box<[u8]>>,
    pub spares: RefCell<Vec<Vec<u8>>>,
    pub calls: RefCell<Vec<InCall>>,
    pub events: RefCell<Vec<Event>>,
    /// Bytes of unfinished requests.
    pub held: Cell<usize>,
    /// Connections, those that are still greeting included.
    pub open: Cell<usize>,
    /// Told when the first deadline is set.
    pub deadline_set: Notify,
    pub draining: Cell<bool>,
    /// Connections that are over and send their last words.
    pub parting: Cell<usize>,
    pub generation: Cell<u32>,
    paused: RefCell<Vec<Waker>>,
    started: Instant,
    now_ms: Cell<u64>,
}

impl World {
    pub fn new(core: Arc<Core>, options: &Options) -> World {
        let methods = options.methods.iter().enumerate().filter_map(|(at, (name, kind))| {
            Some((name.clone().into_boxed_str(), (Method::try_from(at).ok()?, *kind)))
        });
        World {
            core,
            methods: methods.collect(),
            live: RefCell::new(Slab::new()),
            wheel: RefCell::new(Wheel::new(0)),
            conns: RefCell::new(Slab::new()),
            scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            spares: RefCell::new(Vec::new()),
            calls: RefCell::new(Vec::new()),
            events: RefCell::new(Vec::new()),
            held: Cell::new(0),
            open: Cell::new(0),
            deadline_set: Notify::new(),
            draining: Cell::new(false),
            parting: Cell::new(0),
            generation: Cell::new(0),
            paused: RefCell::new(Vec::new()),
            started: Instant::now(),
            now_ms: Cell::new(0),
        }
    }

    /// Milliseconds since the start, as of the last `touch_clock`.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Reads the clock; each turn of anything begins with it.
    pub fn touch_clock(&self) {
        self.now_ms.set(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
    }

    /// The tick of a time in milliseconds.
    pub fn tick_of(at_ms: u64) -> u64 {
        at_ms / TICK_MS
    }

    /// Hands over what has come in.
    pub fn publish(&self) {
        self.core.publish(&mut self.calls.borrow_mut(), &mut self.events.borrow_mut());
    }

    pub fn event(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    /// True while no more may be read; the task is woken when that ends.
    pub fn pause_if_full(&self, cx: &mut Context<'_>) -> bool {
        if !self.core.is_full() {
            return false;
        }
        let mut paused = self.paused.borrow_mut();
        if paused.is_empty() {
            self.core.set_paused(true);
            if !self.core.is_full() {
                // It was taken just before the other side could know that we wait.
                self.core.set_paused(false);
                return false;
            }
            Stats::count(&self.core.stats.inbox_full_total);
        }
        if !paused.iter().rev().take(4).any(|waker| waker.will_wake(cx.waker())) {
            paused.push(cx.waker().clone());
        }
        true
    }

    /// Ends the pause once there is room.
    pub fn resume(&self) {
        if !self.paused.borrow().is_empty() && !self.core.is_full() {
            self.core.set_paused(false);
            for waker in self.paused.take() {
                waker.wake();
            }
        }
    }
}

/// Stream numbers are the peer's choice, but one connection's hold no more than `streams_max`.
#[derive(Default)]
pub(crate) struct StreamHasher(u64);

impl Hasher for StreamHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        let mixed = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// From stream number to slot.
pub(crate) type Ids = HashMap<u32, Key, BuildHasherDefault<StreamHasher>>;

/// What a connection's task and the calls on it share.
pub(crate) struct Conn {
    pub wire: Rc<RefCell<Wire>>,
    pub peer: Arc<Peer>,
    pub ids: RefCell<Ids>,
    pub ready: Arc<Ready>,
    /// Bytes of answers that wait here for the peer's windows.
    pub unsent: Cell<usize>,
    /// Bytes handed to h2 since its last turn that left nothing behind.
    pub handed: Cell<usize>,
    /// Calls that wait for that.
    pub blocked: RefCell<Vec<Key>>,
    pub kill: Cell<bool>,
    pub ping: Cell<bool>,
    pub pinged_at_ms: Cell<Option<u64>>,
}

impl Conn {
    pub fn new(wire: Wire, peer: Arc<Peer>) -> Conn {
        Conn {
            wire: Rc::new(RefCell::new(wire)),
            peer,
            ids: RefCell::new(Ids::default()),
            ready: Arc::new(Ready::default()),
            unsent: Cell::new(0),
            handed: Cell::new(0),
            blocked: RefCell::new(Vec::new()),
            kill: Cell::new(false),
            ping: Cell::new(false),
            pinged_at_ms: Cell::new(None),
        }
    }
}

/// Calls of one connection that can go on.
#[derive(Default)]
pub(crate) struct Ready {
    list: Mutex<Vec<Key>>,
    task: Mutex<Option<Waker>>,
    /// The connection's task looks at the list before it ends its turn.
    in_turn: AtomicBool,
}

impl Ready {
    pub fn begin_turn(&self, waker: &Waker) {
        self.in_turn.store(true, Ordering::Relaxed);
        let mut task = lock(&self.task);
        if !task.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    pub fn end_turn(&self) {
        self.in_turn.store(false, Ordering::Relaxed);
    }

    pub fn add(&self, key: Key) {
        lock(&self.list).push(key);
    }

    pub fn take(&self) -> Vec<Key> {
        std::mem::take(&mut *lock(&self.list))
    }

    /// Has the connection's task run.
    pub fn wake_task(&self) {
        if !self.in_turn.load(Ordering::Relaxed)
            && let Some(waker) = &*lock(&self.task)
        {
            waker.wake_by_ref();
        }
    }

    /// What wakes one call: its key joins the list.
    pub fn waker(self: &Arc<Ready>, key: Key) -> Waker {
        Waker::from(Arc::new(StreamWaker { key, ready: Arc::clone(self) }))
    }
}

struct StreamWaker {
    key: Key,
    ready: Arc<Ready>,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.add(self.key);
        self.ready.wake_task();
    }
}

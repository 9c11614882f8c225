//! One thread of a load: its connections, its workers and watchers, and the schedule of its work.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::acks::Acks;
use crate::conn::{Conn, Outcome};
use crate::hpack::Status;
use crate::kube;
use crate::options::Options;
use crate::report::Found;
use crate::scenario::{self, Known, Next, PATHS, Part, Scenario, method};
use crate::setup::SETUP_MAX;
use crate::wire;

/// Calls under way at the end get this long; they are not counted.
const FINISH_MAX: Duration = Duration::from_secs(10);
pub(crate) const READ_BYTES: usize = 256 << 10;
/// Due units that wait for a worker; beyond, the run is hopeless and they are dropped and counted.
const BACKLOG_MAX: usize = 1 << 20;
/// Watchers' names begin here.
const WATCH_TOKEN: u64 = 1 << 32;
/// What kube-apiserver says when it opens a watch.
const WATCH_METADATA: [(&str, &str); 1] = [("hasleader", "true")];

/// What the threads and the one that conducts them tell each other.
#[derive(Default)]
pub(crate) struct Shared {
    pub measuring: AtomicBool,
    pub stop: AtomicBool,
    pub done: AtomicU64,
    pub ready: AtomicU64,
}

/// One unit of work under way.
#[derive(Clone, Copy, Default)]
struct Unit {
    due_ns: u64,
    class: usize,
    /// The worker's own stream; a message on it is the end of a unit.
    stream: Option<u32>,
}

/// One thread's part of the load: its sockets, and the rest.
pub(crate) struct Driver<'a> {
    poll: Poll,
    /// Those of the workers; then those of the watchers, where they have their own.
    conns: Vec<Conn>,
    /// Connections that have more to write than the socket took.
    full: Vec<bool>,
    work: Work<'a>,
}

/// What the workers and watchers of a thread are about.
struct Work<'a> {
    scenario: Box<dyn Scenario + 'a>,
    units: Vec<Unit>,
    idle: Vec<usize>,
    /// Units that were due when no worker was idle.
    backlog: VecDeque<u64>,
    interval_ns: u64,
    next_ns: u64,
    epoch: Instant,
    /// WatchCreateRequests, one a stream.
    watches: Vec<Vec<u8>>,
    created: usize,
    /// So many connections, the first ones, are the workers'.
    for_workers: usize,
    /// Where the one that writes sees all events too.
    acks: Option<Acks>,
    /// Calls that ended well.
    calls: u64,
    request: Vec<u8>,
    found: Found,
    measuring: bool,
    stopping: bool,
    under_way: usize,
}

/// Adds `count` connections, the first to the endpoint number `from`.
fn connect(
    endpoints: &[String],
    poll: &Poll,
    from: usize,
    count: usize,
    conns: &mut Vec<Conn>,
) -> Result<(), String> {
    for at in 0..count {
        let number = (from + at) % endpoints.len().max(1);
        let endpoint = endpoints.get(number).ok_or("no endpoints")?;
        let named = |why: io::Error| format!("{endpoint}: {why}");
        if endpoint.starts_with("https://") {
            return Err(format!("{endpoint}: the load generator speaks no TLS"));
        }
        let address = endpoint.trim_start_matches("http://");
        // Blocking, so that a server that is not there is named.
        let socket = std::net::TcpStream::connect(address).map_err(named)?;
        socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true)).map_err(named)?;
        let mut conn = Conn::new(mio::net::TcpStream::from_std(socket));
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(conn.socket(), Token(conns.len()), interest).map_err(named)?;
        conns.push(conn);
    }
    Ok(())
}

/// The part `at` of `parts` of `all`: where it begins, and how many it is.
fn part(all: usize, at: usize, parts: usize) -> (usize, usize) {
    let (first, end) = (all * at / parts, all * (at + 1) / parts);
    (first, end - first)
}

/// The requests that open a thread's part of the watch streams.
fn watches(options: &Options, at: usize, known: &Known) -> Vec<Vec<u8>> {
    let (prefixes, count) = match options.scenario.as_str() {
        "watch" => (vec![options.prefix.as_str()], options.watchers.unwrap_or(100)),
        "kube" | "renew" => (kube::WATCHED.to_vec(), options.watchers.unwrap_or(15)),
        _ => return Vec::new(),
    };
    let (first, count) = part(count, at, options.threads);
    let watch = |n: usize| {
        let prefix = prefixes.get(n % prefixes.len())?.as_bytes();
        let mut request = Vec::new();
        // As kube-apiserver does: from what its list showed, with previous values and progress.
        let next = if known.revision == 0 { 0 } else { known.revision + 1 };
        wire::watch(&mut request, prefix, next, known.revision != 0);
        Some(request)
    };
    (first..first + count).filter_map(watch).collect()
}

impl Driver<'static> {
    /// Connects for the part `at` of what the options ask for.
    pub fn new(
        options: &Options,
        at: usize,
        epoch: Instant,
        known: &Known,
    ) -> Result<Driver<'static>, String> {
        let (first, workers) = part(options.concurrency, at, options.threads);
        let of = Part { at, of: options.threads, first, workers, all: options.concurrency };
        let scenario = scenario::make(options, &of, known)?;
        Driver::with(options, at, epoch, scenario, watches(options, at, known))
    }
}

impl<'a> Driver<'a> {
    /// Connects for the part `at` of a scenario.
    pub fn with(
        options: &Options,
        at: usize,
        epoch: Instant,
        scenario: Box<dyn Scenario + 'a>,
        watches: Vec<Vec<u8>>,
    ) -> Result<Driver<'a>, String> {
        let poll = Poll::new().map_err(|why| why.to_string())?;
        let (first, count) = part(options.conns, at, options.threads);
        let mut conns = Vec::new();
        connect(&options.endpoints, &poll, first, count, &mut conns)?;
        let for_workers = conns.len();
        if !watches.is_empty() && !options.watch_endpoints.is_empty() {
            connect(&options.watch_endpoints, &poll, first, count, &mut conns)?;
        }
        let (_, workers) = part(options.concurrency, at, options.threads);
        let rate = options.rate / options.threads as f64;
        let work = Work {
            scenario,
            units: vec![Unit::default(); workers],
            idle: (0..workers).rev().collect(),
            backlog: VecDeque::new(),
            interval_ns: if rate > 0.0 { (1e9 / rate).max(1.0) as u64 } else { 0 },
            next_ns: 0,
            epoch,
            watches,
            created: 0,
            for_workers,
            // Another thread would have to be asked for every event.
            acks: (options.scenario == "watch" && options.threads == 1).then(Acks::default),
            calls: 0,
            request: Vec::new(),
            found: Found::default(),
            measuring: false,
            stopping: false,
            under_way: 0,
        };
        Ok(Driver { poll, full: vec![false; conns.len()], conns, work })
    }

    /// Begins one unit of work of each worker; there will be no second.
    pub fn once(&mut self) {
        self.work.measuring = true;
        self.work.stopping = true;
        self.work.begin(&mut self.conns);
    }

    /// Whether nothing is under way.
    pub fn finished(&self) -> bool {
        self.work.under_way == 0
    }

    /// Calls that ended well so far.
    pub fn calls(&self) -> u64 {
        self.work.calls
    }

    /// The code and text of a call that failed.
    pub fn error(&self) -> Option<&str> {
        self.work.found.errors.keys().next().map(String::as_str)
    }

    /// Makes load until it is told to stop.
    pub fn run(mut self, shared: &Shared) -> Result<Found, String> {
        let result = self.drive(shared);
        let mut found = self.work.found;
        found.conflicts = self.work.scenario.conflicts();
        match (result, found.errors.keys().next()) {
            (Ok(()), _) => Ok(found),
            (Err(why), None) => Err(why.to_string()),
            (Err(why), Some(error)) => Err(format!("{why} (before that: {error})")),
        }
    }

    fn drive(&mut self, shared: &Shared) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; READ_BYTES];
        // Watches stand before anything is written.
        self.work.watch(&mut self.conns);
        let setup = Instant::now();
        while self.work.created < self.work.watches.len() {
            if setup.elapsed() > SETUP_MAX {
                return Err(io::Error::other("the watches were not created in time"));
            }
            self.turn(&mut events, &mut scratch, Duration::from_millis(100))?;
        }
        shared.ready.fetch_add(1, Ordering::SeqCst);
        self.work.next_ns = self.work.now_ns();
        let received = |conns: &[Conn]| conns.iter().map(|conn| conn.traffic.0).sum::<u64>();
        let (mut before, mut reported) = (0, 0);
        while !shared.stop.load(Ordering::Relaxed) {
            let measuring = shared.measuring.load(Ordering::Relaxed);
            if measuring != self.work.measuring {
                self.work.measuring = measuring;
                if measuring {
                    before = received(&self.conns);
                } else {
                    self.work.measured(received(&self.conns) - before);
                }
            }
            let patience = self.work.begin(&mut self.conns);
            self.turn(&mut events, &mut scratch, patience)?;
            let done = self.work.found.all.count();
            shared.done.fetch_add(done - reported, Ordering::Relaxed);
            reported = done;
        }
        if self.work.measuring {
            self.work.measured(received(&self.conns) - before);
        }
        self.work.measuring = false;
        self.work.stopping = true;
        self.work.backlog.clear();
        let end = Instant::now() + FINISH_MAX;
        while self.work.under_way > 0 && Instant::now() < end {
            self.turn(&mut events, &mut scratch, Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Writes what there is to write, waits for something to happen, and sees to it.
    pub fn turn(
        &mut self,
        events: &mut Events,
        scratch: &mut [u8],
        patience: Duration,
    ) -> io::Result<()> {
        for (conn, full) in self.conns.iter_mut().zip(&mut self.full) {
            if !*full {
                *full = conn.flush()?;
            }
        }
        match self.poll.poll(events, Some(patience)) {
            Err(why) if why.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in events.iter() {
            let at = event.token().0;
            if event.is_writable() {
                self.full[at] = false;
            }
            if event.is_readable() {
                let work = &mut self.work;
                let now_ns = work.now_ns();
                self.conns[at].read(scratch, &mut |conn, token, outcome| {
                    work.came(conn, token, outcome, now_ns);
                })?;
            }
        }
        Ok(())
    }
}

impl Work<'_> {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn watch(&mut self, conns: &mut [Conn]) {
        // Theirs, or else everybody's.
        let first = if conns.len() > self.for_workers { self.for_workers } else { 0 };
        let count = conns.len() - first;
        for (at, request) in self.watches.iter().enumerate() {
            let (token, path) = (WATCH_TOKEN + at as u64, PATHS[method::WATCH]);
            let conn = &mut conns[first + at % count];
            conn.call(token, method::WATCH, path, &WATCH_METADATA, request, false);
        }
    }

    /// The time that is measured is over, and so many bytes were received in it.
    fn measured(&mut self, received: u64) {
        self.found.received = received;
        if self.interval_ns > 0 {
            self.found.unfinished = (self.backlog.len() + self.under_way) as u64;
        }
    }

    /// Begins what is due. Returns how long to wait for the next.
    fn begin(&mut self, conns: &mut [Conn]) -> Duration {
        const LONG: Duration = Duration::from_millis(50);
        let count = self.for_workers;
        let now_ns = self.now_ns();
        if self.interval_ns == 0 {
            // A closed loop: all of them, once. After a failure a worker comes back here.
            while let Some(worker) = self.idle.pop() {
                self.unit(&mut conns[worker % count], worker, now_ns, now_ns);
            }
            return LONG;
        }
        while self.next_ns <= now_ns {
            if self.backlog.len() < BACKLOG_MAX {
                self.backlog.push_back(self.next_ns);
            } else if self.measuring {
                self.found.dropped += 1;
            }
            self.next_ns += self.interval_ns;
        }
        while !self.backlog.is_empty()
            && let Some(worker) = self.idle.pop()
            && let Some(due_ns) = self.backlog.pop_front()
        {
            self.unit(&mut conns[worker % count], worker, due_ns, now_ns);
        }
        LONG.min(Duration::from_nanos(self.next_ns.saturating_sub(self.now_ns())))
    }

    /// Begins a unit of work of an idle worker.
    fn unit(&mut self, conn: &mut Conn, worker: usize, due_ns: u64, now_ns: u64) {
        self.request.clear();
        let (next, class) = self.scenario.begin(worker, now_ns, &mut self.request);
        let unit = &mut self.units[worker];
        unit.due_ns = due_ns;
        unit.class = class;
        self.under_way += 1;
        self.go(conn, worker, next);
    }

    fn go(&mut self, conn: &mut Conn, worker: usize, next: Next) {
        let unit = &mut self.units[worker];
        match next {
            Next::Call(method) => {
                conn.call(worker as u64, method, PATHS[method], &[], &self.request, true);
            }
            Next::Send => match (unit.stream, self.scenario.stream()) {
                (Some(stream), _) => conn.send(stream, &self.request, false),
                (None, Some(method)) => {
                    let token = worker as u64;
                    let path = PATHS[method];
                    unit.stream = Some(conn.call(token, method, path, &[], &self.request, false));
                }
                (None, None) => {}
            },
            Next::Done => {}
        }
    }

    /// Something came.
    fn came(&mut self, conn: &mut Conn, token: u64, outcome: Outcome<'_>, now_ns: u64) {
        if token >= WATCH_TOKEN {
            return self.watched(outcome, now_ns);
        }
        let worker = token as usize;
        match outcome {
            Outcome::Message(message) => {
                if let Some(acks) = &mut self.acks {
                    acks.note(wire::revision(message), now_ns);
                }
                self.scenario.message(worker, message);
                if self.units[worker].stream.is_some() {
                    self.ended(conn, worker, now_ns);
                }
            }
            Outcome::Ended(Status { code: 0, .. }) => self.ended(conn, worker, now_ns),
            Outcome::Ended(status) => {
                if self.measuring {
                    self.failed(&status);
                }
                self.scenario.failed(worker);
                // Not again at once: a server that refuses would be asked a million times.
                self.units[worker].stream = None;
                self.under_way -= 1;
                self.idle.push(worker);
            }
        }
    }

    fn failed(&mut self, status: &Status) {
        let Status { code, message } = status;
        *self.found.errors.entry(format!("{code} {message}")).or_default() += 1;
    }

    fn ended(&mut self, conn: &mut Conn, worker: usize, now_ns: u64) {
        self.calls += 1;
        self.request.clear();
        let next = self.scenario.end(worker, &mut self.request);
        if !matches!(next, Next::Done) {
            return self.go(conn, worker, next);
        }
        let Unit { due_ns, class, .. } = self.units[worker];
        if self.measuring {
            let took_ns = now_ns.saturating_sub(due_ns);
            self.found.all.record(took_ns);
            let names = self.scenario.classes();
            if names.len() > 1
                && let Some(name) = names.get(class)
            {
                self.found.classes.entry(name).or_default().record(took_ns);
            }
        }
        self.under_way -= 1;
        if self.stopping {
            return;
        }
        if self.interval_ns == 0 {
            self.unit(conn, worker, now_ns, now_ns);
        } else if let Some(due_ns) = self.backlog.pop_front() {
            self.unit(conn, worker, due_ns, now_ns);
        } else {
            self.idle.push(worker);
        }
    }

    fn watched(&mut self, outcome: Outcome<'_>, now_ns: u64) {
        match outcome {
            Outcome::Ended(status) => self.failed(&status),
            Outcome::Message(message) if wire::number_of(message, 4) != 0 => {
                let reason = String::from_utf8_lossy(wire::bytes_of(message, 6)).into_owned();
                self.failed(&Status { code: 1, message: format!("watch canceled: {reason}") });
            }
            Outcome::Message(message) if wire::number_of(message, 3) != 0 => self.created += 1,
            Outcome::Message(message) => {
                let Found { events, lag, delay, .. } = &mut self.found;
                let (measuring, acks) = (self.measuring, &self.acks);
                wire::events(message, |revision, value| {
                    if measuring {
                        *events += 1;
                        if let Some(acks) = acks {
                            delay.record(acks.since(revision, now_ns));
                        }
                        if let Some(stamp) = value.first_chunk::<8>() {
                            lag.record(now_ns.saturating_sub(u64::from_be_bytes(*stamp)));
                        }
                    }
                });
            }
        }
    }
}

//! A run: threads, connections, workers, the schedule, and what is reported.
//!
//! With a rate, a unit of work's latency counts from when it was *due*, whether or not it could
//! begin then: a server that stalls is charged for every unit that had to wait for it, not only for
//! the one that it stalled on (no coordinated omission).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use serde::Serialize;

use crate::conn::{Conn, Outcome};
use crate::hist::{Histogram, Summary};
use crate::hpack::Status;
use crate::options::Options;
use crate::scenario::{self, FILL_BATCH, Next, PATHS, Scenario, method};
use crate::wire;

/// A run that does not get going is given up after this.
const SETUP_MAX: Duration = Duration::from_secs(300);
/// Calls under way at the end get this long; they are not counted.
const FINISH_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 256 << 10;
/// Due units that wait for a worker; beyond, the run is hopeless and they are dropped and counted.
const BACKLOG_MAX: usize = 1 << 20;
/// Transactions of the filling that are under way at once.
const FILL_WORKERS: usize = 64;
/// Watchers' names begin here.
const WATCH_TOKEN: u64 = 1 << 32;

/// What a run reports.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What was asked for.
    pub options: Option<Options>,
    /// How long was measured.
    pub seconds: f64,
    /// Units of work done.
    pub requests: u64,
    /// A second.
    pub rate: f64,
    /// Calls that failed, by code and text.
    pub errors: BTreeMap<String, u64>,
    /// Updates that found another revision than they knew.
    pub conflicts: u64,
    /// Units that were due and never begun.
    pub dropped: u64,
    /// Megabytes received a second.
    pub received_mb_s: f64,
    /// All latencies.
    pub latency: Summary,
    /// By class, where there are several.
    pub classes: BTreeMap<String, Summary>,
    /// Events that watchers received.
    pub events: u64,
    /// A second.
    pub event_rate: f64,
    /// From the writer's beginning to the watcher's having it.
    pub event_lag: Summary,
    /// CPU that making the load took, a unit of work.
    pub own_cpu_us: f64,
}

impl Report {
    /// One line of JSON.
    pub fn to_json(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|why| why.to_string())
    }
}

#[derive(Default)]
struct Shared {
    measuring: AtomicBool,
    stop: AtomicBool,
    done: AtomicU64,
    ready: AtomicU64,
}

/// What one thread found.
#[derive(Default)]
struct Found {
    all: Histogram,
    classes: BTreeMap<&'static str, Histogram>,
    lag: Histogram,
    errors: BTreeMap<String, u64>,
    conflicts: u64,
    dropped: u64,
    events: u64,
    received: u64,
}

/// Runs what the options say. `progress` is told the units of work done so far, and the part of
/// the time that is over; the run ends when it says false.
pub fn run(
    options: &Options,
    progress: &mut dyn FnMut(u64, f64) -> bool,
) -> Result<Report, String> {
    let mut options = options.clone();
    options.conns = options.conns.max(1);
    options.concurrency = options.concurrency.max(1);
    options.threads = options.threads.clamp(1, options.conns.min(options.concurrency));
    if options.scenario == "kube" && options.rate == 0.0 {
        options.rate = crate::kube::rate(options.nodes);
    }
    let epoch = Instant::now();
    let fills = ["range", "count", "list", "range-stream", "mixed"];
    if options.scenario == "fill" || options.fill && fills.contains(&options.scenario.as_str()) {
        fill(&options, epoch)?;
        if options.scenario == "fill" {
            let seconds = epoch.elapsed().as_secs_f64();
            let requests = options.keys as u64;
            let rate = requests as f64 / seconds;
            return Ok(Report {
                seconds,
                requests,
                rate,
                options: Some(options),
                ..Report::default()
            });
        }
    }
    let shared = Arc::new(Shared::default());
    let mut threads = Vec::new();
    for at in 0..options.threads {
        let (options, shared) = (options.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new().name(format!("load-{at}"));
        threads.push(
            thread
                .spawn(move || Driver::new(&options, at, epoch)?.run(&shared))
                .map_err(|why| why.to_string())?,
        );
    }
    let outcome = conduct(&options, &shared, &threads, progress);
    shared.stop.store(true, Ordering::SeqCst);
    let mut found = Found::default();
    for thread in threads {
        let theirs = thread.join().map_err(|_| "a thread of the load panicked".to_owned())??;
        found.all.merge(&theirs.all);
        found.lag.merge(&theirs.lag);
        for (class, histogram) in &theirs.classes {
            found.classes.entry(class).or_default().merge(histogram);
        }
        for (error, count) in theirs.errors {
            *found.errors.entry(error).or_default() += count;
        }
        found.conflicts += theirs.conflicts;
        found.dropped += theirs.dropped;
        found.events += theirs.events;
        found.received += theirs.received;
    }
    let (seconds, cpu_s) = outcome?;
    let requests = found.all.count();
    Ok(Report {
        seconds,
        requests,
        rate: requests as f64 / seconds,
        errors: found.errors,
        conflicts: found.conflicts,
        dropped: found.dropped,
        received_mb_s: found.received as f64 / seconds / 1e6,
        latency: found.all.summary(),
        classes: if found.classes.len() > 1 {
            found.classes.iter().map(|(name, h)| ((*name).to_owned(), h.summary())).collect()
        } else {
            BTreeMap::new()
        },
        events: found.events,
        event_rate: found.events as f64 / seconds,
        event_lag: found.lag.summary(),
        own_cpu_us: cpu_s * 1e6 / requests.max(1) as f64,
        options: Some(options),
    })
}

type Thread = thread::JoinHandle<Result<Found, String>>;

/// Waits for all to be ready, warms up, measures. Returns the seconds, and the CPU that they took.
fn conduct(
    options: &Options,
    shared: &Shared,
    threads: &[Thread],
    progress: &mut dyn FnMut(u64, f64) -> bool,
) -> Result<(f64, f64), String> {
    let setup = Instant::now();
    let failed = || threads.iter().any(Thread::is_finished);
    while shared.ready.load(Ordering::SeqCst) < threads.len() as u64 {
        if failed() || setup.elapsed() > SETUP_MAX {
            return Err("the load could not be set up".to_owned());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let all = options.warmup_s + options.duration_s;
    let began = Instant::now();
    let mut ended = false;
    let mut wait = |seconds: f64| {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while !failed() && !ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(200)));
            let part = began.elapsed().as_secs_f64() / all;
            ended = !progress(shared.done.load(Ordering::Relaxed), part.min(1.0));
        }
    };
    wait(options.warmup_s);
    let (at, cpu_s) = (Instant::now(), cpu());
    shared.measuring.store(true, Ordering::SeqCst);
    wait(options.duration_s);
    shared.measuring.store(false, Ordering::SeqCst);
    Ok((at.elapsed().as_secs_f64(), cpu() - cpu_s))
}

fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
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
struct Driver {
    poll: Poll,
    conns: Vec<Conn>,
    /// Connections that have more to write than the socket took.
    full: Vec<bool>,
    work: Work,
}

/// What the workers and watchers of a thread are about.
struct Work {
    scenario: Box<dyn Scenario>,
    units: Vec<Unit>,
    idle: Vec<usize>,
    /// Units that were due when no worker was idle.
    backlog: VecDeque<u64>,
    interval_ns: u64,
    next_ns: u64,
    epoch: Instant,
    watches: Vec<Vec<u8>>,
    created: usize,
    request: Vec<u8>,
    found: Found,
    measuring: bool,
    stopping: bool,
    under_way: usize,
}

fn connect(options: &Options, poll: &Poll, from: usize, count: usize) -> Result<Vec<Conn>, String> {
    let mut conns = Vec::new();
    for at in 0..count {
        let number = (from + at) % options.endpoints.len().max(1);
        let endpoint = options.endpoints.get(number).ok_or("no endpoints")?;
        let named = |why: io::Error| format!("{endpoint}: {why}");
        let address = endpoint.trim_start_matches("http://");
        // Blocking, so that a server that is not there is named.
        let socket = std::net::TcpStream::connect(address).map_err(named)?;
        socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true)).map_err(named)?;
        let mut conn = Conn::new(mio::net::TcpStream::from_std(socket));
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(conn.socket(), Token(at), interest).map_err(named)?;
        conns.push(conn);
    }
    Ok(conns)
}

/// The part `at` of `parts` of `all`: where it begins, and how many it is.
fn part(all: usize, at: usize, parts: usize) -> (usize, usize) {
    let (first, end) = (all * at / parts, all * (at + 1) / parts);
    (first, end - first)
}

impl Driver {
    fn new(options: &Options, at: usize, epoch: Instant) -> Result<Driver, String> {
        let poll = Poll::new().map_err(|why| why.to_string())?;
        let (first, count) = part(options.conns, at, options.threads);
        let conns = connect(options, &poll, first, count)?;
        Ok(Driver { poll, full: vec![false; count], conns, work: Work::new(options, at, epoch)? })
    }

    fn run(mut self, shared: &Shared) -> Result<Found, String> {
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
                    self.work.found.received = received(&self.conns) - before;
                }
            }
            let patience = self.work.begin(&mut self.conns);
            self.turn(&mut events, &mut scratch, patience)?;
            let done = self.work.found.all.count();
            shared.done.fetch_add(done - reported, Ordering::Relaxed);
            reported = done;
        }
        if self.work.measuring {
            self.work.found.received = received(&self.conns) - before;
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
    fn turn(
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

impl Work {
    fn new(options: &Options, at: usize, epoch: Instant) -> Result<Work, String> {
        let (first, workers) = part(options.concurrency, at, options.threads);
        let prefixes: Vec<String> = match options.scenario.as_str() {
            "watch" => vec![options.prefix.clone()],
            "kube" => ["leases", "minions", "pods", "events"]
                .map(|resource| format!("/registry/{resource}/"))
                .to_vec(),
            _ => Vec::new(),
        };
        let (first_watch, watches) = part(options.watchers, at, options.threads);
        let prefix = |n: usize| prefixes.get(n % prefixes.len().max(1));
        let watches = (first_watch..first_watch + watches).filter_map(prefix);
        let rate = options.rate / options.threads as f64;
        Ok(Work {
            scenario: scenario::make(options, first, workers, options.concurrency)?,
            units: vec![Unit::default(); workers],
            idle: (0..workers).rev().collect(),
            backlog: VecDeque::new(),
            interval_ns: if rate > 0.0 { (1e9 / rate).max(1.0) as u64 } else { 0 },
            next_ns: 0,
            epoch,
            watches: watches.map(|prefix| prefix.clone().into_bytes()).collect(),
            created: 0,
            request: Vec::new(),
            found: Found::default(),
            measuring: false,
            stopping: false,
            under_way: 0,
        })
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn watch(&mut self, conns: &mut [Conn]) {
        let count = conns.len();
        for (at, prefix) in self.watches.iter().enumerate() {
            let mut request = Vec::new();
            wire::nested(&mut request, 1, |create| {
                wire::bytes(create, 1, prefix);
                wire::bytes(create, 2, &wire::prefix_end(prefix));
            });
            let path = PATHS[method::WATCH];
            conns[at % count].call(WATCH_TOKEN + at as u64, method::WATCH, path, &request, false);
        }
    }

    /// Begins what is due. Returns how long to wait for the next.
    fn begin(&mut self, conns: &mut [Conn]) -> Duration {
        const LONG: Duration = Duration::from_millis(50);
        let count = conns.len();
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
                conn.call(worker as u64, method, PATHS[method], &self.request, true);
            }
            Next::Send => match (unit.stream, self.scenario.stream()) {
                (Some(stream), _) => conn.send(stream, &self.request, false),
                (None, Some(method)) => {
                    let token = worker as u64;
                    let path = PATHS[method];
                    unit.stream = Some(conn.call(token, method, path, &self.request, false));
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
            Outcome::Message(message) if wire::number_of(message, 3) != 0 => self.created += 1,
            Outcome::Message(message) => {
                let Found { events, lag, .. } = &mut self.found;
                let measuring = self.measuring;
                wire::events(message, |value| {
                    if measuring {
                        *events += 1;
                        if let Some(stamp) = value.first_chunk::<8>() {
                            lag.record(now_ns.saturating_sub(u64::from_be_bytes(*stamp)));
                        }
                    }
                });
            }
        }
    }
}

/// Writes all keys, many in one transaction.
fn fill(options: &Options, epoch: Instant) -> Result<(), String> {
    let mut options = options.clone();
    options.scenario = "fill".to_owned();
    options.concurrency = FILL_WORKERS.min(options.keys.div_ceil(FILL_BATCH)).max(1);
    options.conns = options.conns.min(options.concurrency);
    options.threads = 1;
    options.rate = 0.0;
    options.watchers = 0;
    let mut driver = Driver::new(&options, 0, epoch)?;
    let mut events = Events::with_capacity(64);
    let mut scratch = vec![0; READ_BYTES];
    let deadline = Instant::now() + SETUP_MAX;
    let work = |why: io::Error| format!("writing the keys: {why}");
    // Each worker goes on within its one unit until all is written.
    driver.work.stopping = true;
    driver.work.begin(&mut driver.conns);
    while driver.work.under_way > 0 {
        if Instant::now() > deadline {
            return Err("writing the keys takes too long".to_owned());
        }
        driver.turn(&mut events, &mut scratch, Duration::from_millis(50)).map_err(work)?;
        if !driver.work.idle.is_empty() {
            return Err(format!("writing the keys: {:?}", driver.work.found.errors));
        }
    }
    Ok(())
}

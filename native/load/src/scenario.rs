//! What is asked for: requests, and what their answers say about the next ones.

use std::collections::HashMap;

use crate::kube::Kube;
use crate::options::Options;
use crate::wire::{self, Range};

/// Methods, by their numbers in `PATHS`.
pub mod method {
    #![allow(missing_docs)]
    pub const PUT: usize = 0;
    pub const TXN: usize = 1;
    pub const RANGE: usize = 2;
    pub const RANGE_STREAM: usize = 3;
    pub const WATCH: usize = 4;
    pub const LEASE_GRANT: usize = 5;
    pub const KEEP_ALIVE: usize = 6;
}

/// Full names of the methods.
pub const PATHS: [&str; 7] = [
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseKeepAlive",
];

/// What a worker does next.
pub enum Next {
    /// A call of this method, with the request that was written.
    Call(usize),
    /// A message on the worker's own stream, with the request that was written.
    Send,
    /// Nothing: the unit of work is done.
    Done,
}

/// One kind of load. Workers are numbers; each has one unit of work under way at most.
pub trait Scenario {
    /// Names of the classes that latencies are reported for.
    fn classes(&self) -> &'static [&'static str];

    /// Whether workers speak on streams of their own, and of which method.
    fn stream(&self) -> Option<usize> {
        None
    }

    /// Begins a unit of work of a worker; its class. Writes the request.
    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize);

    /// A message came.
    fn message(&mut self, _worker: usize, _message: &[u8]) {}

    /// The call ended well (or its stream's message is there): go on, or be done.
    fn end(&mut self, _worker: usize, _request: &mut Vec<u8>) -> Next {
        Next::Done
    }

    /// The call failed; what became of it is not known.
    fn failed(&mut self, _worker: usize) {}

    /// Updates that found something else than they knew.
    fn conflicts(&self) -> u64 {
        0
    }
}

impl<S: Scenario + ?Sized> Scenario for &mut S {
    fn classes(&self) -> &'static [&'static str] {
        (**self).classes()
    }

    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize) {
        (**self).begin(worker, now_ns, request)
    }

    fn message(&mut self, worker: usize, message: &[u8]) {
        (**self).message(worker, message);
    }

    fn end(&mut self, worker: usize, request: &mut Vec<u8>) -> Next {
        (**self).end(worker, request)
    }
}

/// What is known of the objects that are there when a load begins.
#[derive(Default)]
pub struct Known {
    /// The newest revision at which they were looked at; 0 if they were not.
    pub revision: u64,
    /// By their prefix: the mod revision of each by its number; 0 where there is none.
    pub objects: HashMap<&'static str, Vec<u64>>,
}

/// One thread's part of a load.
pub struct Part {
    /// Which part.
    pub at: usize,
    /// Of how many.
    pub of: usize,
    /// The number of its first worker.
    pub first: usize,
    /// How many are its.
    pub workers: usize,
    /// Workers of all parts.
    pub all: usize,
}

/// Makes one part of the scenario that is asked for.
pub fn make(options: &Options, part: &Part, known: &Known) -> Result<Box<dyn Scenario>, String> {
    let Part { first, workers, all, .. } = *part;
    let common = Common::new(options, first, workers, all);
    Ok(match options.scenario.as_str() {
        "put" | "watch" => Box::new(Put { common }),
        "txn" => Box::new(Txn::new(common, "txn")),
        "range" => Box::new(Get { common }),
        "count" => Box::new(Count { common }),
        "list" => Box::new(List::new(common, options.limit)),
        "range-stream" => Box::new(RangeStream { common }),
        "keepalive" => Box::new(KeepAlive { leases: vec![0; workers], granted: 0 }),
        "mixed" => Box::new(Mixed {
            get: Get { common: common.clone() },
            txn: Txn::new(common, "update"),
            turn: vec![0; workers],
        }),
        "kube" | "renew" => Box::new(Kube::new(options, part, known)),
        other => return Err(format!("there is no scenario {other:?}")),
    })
}

/// Keys and values that all scenarios use alike.
#[derive(Clone)]
pub struct Common {
    prefix: Vec<u8>,
    end: Vec<u8>,
    value: Vec<u8>,
    keys: usize,
    /// Keys that a worker has for itself, so that updates do not conflict.
    share: usize,
    first: usize,
    count: Vec<u64>,
}

/// Letters, as a text would have them: not all the same, and cheap to make.
pub fn filler(len: usize) -> Vec<u8> {
    (0..len).map(|at| b'a' + (at % 23) as u8).collect()
}

impl Common {
    fn new(options: &Options, first: usize, workers: usize, all: usize) -> Common {
        let prefix = options.prefix.clone().into_bytes();
        Common {
            end: wire::prefix_end(&prefix),
            prefix,
            value: filler(options.value_bytes),
            keys: options.keys,
            share: (options.keys / all.max(1)).max(1),
            first,
            count: vec![0; workers],
        }
    }

    fn key(&self, n: usize) -> Vec<u8> {
        key(&self.prefix, n)
    }

    /// The worker's turn, and which of its own keys is next.
    fn own(&mut self, worker: usize) -> usize {
        self.count[worker] += 1;
        self.count[worker] as usize % self.share
    }

    fn own_key(&self, worker: usize, n: usize) -> Vec<u8> {
        self.key((self.first + worker) * self.share + n)
    }

    /// Any key, all over the range.
    fn any_key(&mut self, worker: usize) -> Vec<u8> {
        self.count[worker] += 1;
        let n = (self.first + worker) as u64 * 7919 + self.count[worker] * 104_729;
        self.key((n % self.keys as u64) as usize)
    }
}

/// A key below a prefix.
pub fn key(prefix: &[u8], n: usize) -> Vec<u8> {
    let mut key = prefix.to_vec();
    key.extend_from_slice(format!("{n:08}").as_bytes());
    key
}

struct Put {
    common: Common,
}

impl Scenario for Put {
    fn classes(&self) -> &'static [&'static str] {
        &["put"]
    }

    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let n = self.common.own(worker);
        let key = self.common.own_key(worker, n);
        if let Some(stamp) = self.common.value.first_chunk_mut::<8>() {
            *stamp = now_ns.to_be_bytes();
        }
        wire::put(request, &key, &self.common.value, 0);
        (Next::Call(method::PUT), 0)
    }
}

/// Updates as kube-apiserver makes them.
struct Txn {
    common: Common,
    class: &'static str,
    /// By worker, of each of its keys.
    revisions: Vec<Vec<u64>>,
    current: Vec<usize>,
    conflicts: u64,
}

impl Txn {
    fn new(common: Common, class: &'static str) -> Txn {
        let workers = common.count.len();
        let revisions = vec![vec![0; common.share]; workers];
        Txn { common, class, revisions, current: vec![0; workers], conflicts: 0 }
    }
}

impl Scenario for Txn {
    fn classes(&self) -> &'static [&'static str] {
        if self.class == "txn" { &["txn"] } else { &["update"] }
    }

    fn begin(&mut self, worker: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let n = self.common.own(worker);
        self.current[worker] = n;
        let key = self.common.own_key(worker, n);
        wire::update(request, &key, &self.common.value, self.revisions[worker][n], 0);
        (Next::Call(method::TXN), 0)
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        let n = self.current[worker];
        self.revisions[worker][n] = if wire::number_of(answer, 2) != 0 {
            wire::revision(answer)
        } else {
            self.conflicts += 1;
            // A create that found something has no Else that says what. Any other number will do
            // to be told the next time.
            wire::read_revision(answer).max(1)
        };
    }

    fn conflicts(&self) -> u64 {
        self.conflicts
    }
}

struct Get {
    common: Common,
}

impl Scenario for Get {
    fn classes(&self) -> &'static [&'static str] {
        &["range"]
    }

    fn begin(&mut self, worker: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let key = self.common.any_key(worker);
        wire::range(request, &wire::get(&key));
        (Next::Call(method::RANGE), 0)
    }
}

struct Count {
    common: Common,
}

impl Scenario for Count {
    fn classes(&self) -> &'static [&'static str] {
        &["count"]
    }

    fn begin(&mut self, _: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let Common { prefix, end, .. } = &self.common;
        let range = Range { key: prefix, end, count_only: true, ..Range::default() };
        wire::range(request, &range);
        (Next::Call(method::RANGE), 0)
    }
}

/// A list of everything, whole or in pages of one revision.
struct List {
    common: Common,
    limit: u64,
    /// By worker: where the next page begins, and at which revision.
    pages: Vec<Option<(Vec<u8>, u64)>>,
}

impl List {
    fn new(common: Common, limit: u64) -> List {
        let pages = vec![None; common.count.len()];
        List { common, limit, pages }
    }

    fn page(&self, key: &[u8], revision: u64, request: &mut Vec<u8>) -> Next {
        let end = &self.common.end;
        let limit = self.limit;
        let range = Range { key, end, limit, revision, ..Range::default() };
        wire::range(request, &range);
        Next::Call(method::RANGE)
    }
}

impl Scenario for List {
    fn classes(&self) -> &'static [&'static str] {
        &["list"]
    }

    fn begin(&mut self, worker: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        self.pages[worker] = None;
        (self.page(&self.common.prefix, 0, request), 0)
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        let before = self.pages[worker].take().map_or(0, |(_, revision)| revision);
        if self.limit > 0
            && let Some(next) = wire::next_page(answer)
        {
            let revision = if before == 0 { wire::revision(answer) } else { before };
            self.pages[worker] = Some((next, revision));
        }
    }

    fn end(&mut self, worker: usize, request: &mut Vec<u8>) -> Next {
        match &self.pages[worker] {
            Some((key, revision)) => self.page(key, *revision, request),
            None => Next::Done,
        }
    }
}

struct RangeStream {
    common: Common,
}

impl Scenario for RangeStream {
    fn classes(&self) -> &'static [&'static str] {
        &["range-stream"]
    }

    fn begin(&mut self, _: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let Common { prefix, end, .. } = &self.common;
        let range = Range { key: prefix, end, ..Range::default() };
        wire::range(request, &range);
        (Next::Call(method::RANGE_STREAM), 0)
    }
}

/// A lease for each worker, kept alive on a stream of its own. The first unit of work is the grant.
struct KeepAlive {
    leases: Vec<u64>,
    granted: usize,
}

impl Scenario for KeepAlive {
    fn classes(&self) -> &'static [&'static str] {
        &["keepalive", "grant"]
    }

    fn stream(&self) -> Option<usize> {
        Some(method::KEEP_ALIVE)
    }

    fn begin(&mut self, worker: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        if self.leases[worker] == 0 {
            wire::number(request, 1, 600);
            return (Next::Call(method::LEASE_GRANT), 1);
        }
        wire::number(request, 1, self.leases[worker]);
        (Next::Send, 0)
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        if self.leases[worker] == 0 {
            self.leases[worker] = wire::number_of(answer, 2);
            self.granted += 1;
        }
    }
}

/// Nine reads of one key to one update: what is left of a cluster's load when watches serve most.
struct Mixed {
    get: Get,
    txn: Txn,
    turn: Vec<u8>,
}

impl Scenario for Mixed {
    fn classes(&self) -> &'static [&'static str] {
        &["range", "update"]
    }

    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize) {
        self.turn[worker] = (self.turn[worker] + 1) % 10;
        if self.turn[worker] == 0 {
            (self.txn.begin(worker, now_ns, request).0, 1)
        } else {
            self.get.begin(worker, now_ns, request)
        }
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        if self.turn[worker] == 0 {
            self.txn.message(worker, answer);
        }
    }

    fn conflicts(&self) -> u64 {
        self.txn.conflicts
    }
}

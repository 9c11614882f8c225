//! What the nodes of a Kubernetes cluster do to its store.
//!
//! The shapes of requests are kube-apiserver's, as its recorded traffic shows them
//! (`tests/traces/data`): transactions of one compare on the mod revision with one put or delete, an
//! Else that reads the object where one is expected, events with a lease, watches of a resource's
//! prefix with previous values and progress, lists page by page at the revision of the first.
//!
//! | what | how much | from |
//! |---|---|---|
//! | Lease renewals | one a node each 10 s | the kubelet's default; published for 130,000 nodes: 13,000 a second |
//! | node status | one a node each 5 minutes | the kubelet's default |
//! | pod writes | 7 % of renewals | an assumption: with events a tenth of the renewals |
//! | a pod's life | created, updated, deleted | the recording; updated three times where a scheduler and a kubelet are at work, which it lacks |
//! | events | 3 % of renewals, a lease for 1,000 of them | an assumption; the recording and kube-apiserver's default |
//! | watch streams | each apiserver watches each resource once, but not events | the recording |
//! | lists | each of five apiservers lists each resource every 5 minutes, 500 objects a page | an assumption; the page size of client-go's pager |
//!
//! Left out: progress requests, which an apiserver makes while a consistent read waits for its cache,
//! and reads of single objects.

use crate::objects::{Objects, Relists};
use crate::options::Options;
use crate::scenario::{Known, Next, Part, Scenario, filler, method};
use crate::wire;

/// The recording's Leases have 303 bytes at the median; a node's own also names the Node as owner.
const LEASE_BYTES: usize = 400;
/// The recording's Nodes are bare, with 185 bytes; conditions and images of a kubelet make it this.
const NODE_BYTES: usize = 6_000;
/// The recording's median.
const POD_BYTES: usize = 1_303;
/// The recording's median.
const EVENT_BYTES: usize = 393;

/// What the leases of events are granted for, in the recording.
const EVENT_TTL_S: u64 = 3_660;
/// Events that share a lease.
const EVENTS_A_LEASE: usize = 1_000;
/// Objects a page.
const PAGE: u64 = 500;
/// Updates of a pod between its creation and its deletion.
const POD_UPDATES: u8 = 3;

/// Of 10,000 units of work; the rest are renewals. By node and second: 0.1 renewals, 1/300 status
/// reports, 5 * 3 / 500 / 300 pages.
const STATUS_SHARE: u64 = 290;
const POD_SHARE: u64 = 600;
const EVENT_SHARE: u64 = 300;
const LIST_SHARE: u64 = 9;

/// Renewals a second and node, all the rest on top.
const RENEWALS_A_NODE: f64 = 0.1;

const LEASES: &str = "/registry/leases/kube-node-lease/node-";
const NODES: &str = "/registry/minions/node-";
const PODS: &str = "/registry/pods/default/pod-";
const EVENTS: &str = "/registry/events/default/node-";

/// What each apiserver watches and lists.
pub(crate) const WATCHED: &[&str] = &["/registry/leases/", "/registry/minions/", "/registry/pods/"];

/// Units of work a second that the nodes make; 0 for a scenario without nodes.
pub fn rate(options: &Options) -> f64 {
    let renewals = options.nodes as f64 * RENEWALS_A_NODE;
    match options.scenario.as_str() {
        "renew" => renewals,
        "kube" => {
            let others = STATUS_SHARE + POD_SHARE + EVENT_SHARE + LIST_SHARE;
            renewals * 10_000.0 / (10_000 - others) as f64
        }
        _ => 0.0,
    }
}

/// Objects that a load has to know of before it begins.
pub(crate) struct Store {
    pub prefix: &'static str,
    pub value_bytes: usize,
    pub count: usize,
    /// Whether they are all there when the load begins.
    pub standing: bool,
}

/// The objects of the nodes, so that renewals and status reports are updates; and the pods that an
/// earlier run may have left.
pub(crate) fn stores(options: &Options) -> Vec<Store> {
    let nodes = options.nodes;
    let lease = Store { prefix: LEASES, value_bytes: LEASE_BYTES, count: nodes, standing: true };
    if options.scenario == "renew" {
        return vec![lease];
    }
    let node = Store { prefix: NODES, value_bytes: NODE_BYTES, count: nodes, standing: true };
    // Pods that live at once: few enough for each to live through all of its life in a run.
    let count = (nodes / 100).max(2 * options.concurrency);
    vec![lease, node, Store { prefix: PODS, value_bytes: POD_BYTES, count, standing: false }]
}

const CLASSES: [&str; 5] = ["renew", "status", "pod", "event", "list"];

/// What a worker has under way.
#[derive(Clone, Copy, Default)]
enum Current {
    #[default]
    Nothing,
    Renewal(usize),
    Status(usize),
    Pod {
        at: usize,
        deleting: bool,
    },
    /// An event's lease is granted; the event is next.
    Grant,
    Event,
    /// A page of a resource, at a revision.
    Page(usize, u64),
}

pub(crate) struct Kube {
    leases: Objects,
    nodes: Objects,
    pods: Objects,
    /// How often each pod was updated.
    updates: Vec<u8>,
    events: Events,
    relists: Relists,
    renewals_only: bool,
    begun: u64,
    current: Vec<Current>,
    conflicts: u64,
}

/// Events, which are written once.
struct Events {
    /// Sets the names of this run and thread apart.
    prefix: Vec<u8>,
    value: Vec<u8>,
    written: usize,
    lease: u64,
    /// How many more the lease is for.
    left: usize,
}

impl Events {
    fn write(&mut self, request: &mut Vec<u8>) {
        let key = crate::scenario::key(&self.prefix, self.written);
        self.written += 1;
        self.left = self.left.saturating_sub(1);
        wire::update(request, &key, &self.value, 0, self.lease);
    }
}

impl Kube {
    pub fn new(options: &Options, part: &Part, known: &Known) -> Kube {
        let objects = |prefix: &'static str, bytes| {
            let known = known.objects.get(prefix).map_or(&[][..], Vec::as_slice);
            Objects::new(prefix, bytes, known, part.at, part.of)
        };
        let pods = objects(PODS, POD_BYTES);
        Kube {
            leases: objects(LEASES, LEASE_BYTES),
            nodes: objects(NODES, NODE_BYTES),
            updates: vec![0; pods.len()],
            pods,
            events: Events {
                prefix: format!("{EVENTS}{:x}.{}.", known.revision, part.at).into_bytes(),
                value: filler(EVENT_BYTES),
                written: 0,
                lease: 0,
                left: 0,
            },
            relists: Relists::new(WATCHED, PAGE, part.at),
            renewals_only: options.scenario == "renew",
            begun: 0,
            current: vec![Current::Nothing; part.workers],
            conflicts: 0,
        }
    }

    /// The class of the next unit of work.
    fn class(&mut self) -> usize {
        let n = self.begun;
        self.begun += 1;
        if self.renewals_only {
            return 0;
        }
        if n < CLASSES.len() as u64 {
            // A short run has some of everything.
            return n as usize;
        }
        // A step that has no common divisor with 10,000 spreads the classes evenly.
        match n * 6_181 % 10_000 {
            n if n < STATUS_SHARE => 1,
            n if n < STATUS_SHARE + POD_SHARE => 2,
            n if n < STATUS_SHARE + POD_SHARE + EVENT_SHARE => 3,
            n if n < STATUS_SHARE + POD_SHARE + EVENT_SHARE + LIST_SHARE => 4,
            _ => 0,
        }
    }

    /// The next step in a pod's life.
    fn pod(&mut self, now_ns: u64, request: &mut Vec<u8>) -> Current {
        let at = self.pods.pick();
        let deleting = self.pods.exists(at) && self.updates[at] >= POD_UPDATES;
        if deleting {
            self.updates[at] = 0;
            self.pods.delete(at, request);
        } else {
            self.updates[at] += u8::from(self.pods.exists(at));
            self.pods.update(at, now_ns, request);
        }
        Current::Pod { at, deleting }
    }
}

impl Scenario for Kube {
    fn classes(&self) -> &'static [&'static str] {
        if self.renewals_only { &CLASSES[..1] } else { &CLASSES }
    }

    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize) {
        let class = self.class();
        let (current, method) = match class {
            0 => {
                let at = self.leases.pick();
                self.leases.update(at, now_ns, request);
                (Current::Renewal(at), method::TXN)
            }
            1 => {
                let at = self.nodes.pick();
                self.nodes.update(at, now_ns, request);
                (Current::Status(at), method::TXN)
            }
            2 => (self.pod(now_ns, request), method::TXN),
            3 if self.events.left == 0 => {
                wire::number(request, 1, EVENT_TTL_S);
                (Current::Grant, method::LEASE_GRANT)
            }
            3 => {
                self.events.write(request);
                (Current::Event, method::TXN)
            }
            _ => {
                let (resource, revision) = self.relists.page(request);
                (Current::Page(resource, revision), method::RANGE)
            }
        };
        self.current[worker] = current;
        (Next::Call(method), class)
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        let done = match self.current[worker] {
            Current::Renewal(at) => self.leases.learn(at, answer, false),
            Current::Status(at) => self.nodes.learn(at, answer, false),
            Current::Pod { at, deleting } => self.pods.learn(at, answer, deleting),
            Current::Grant => {
                self.events.lease = wire::number_of(answer, 2);
                self.events.left = EVENTS_A_LEASE;
                true
            }
            Current::Event => wire::number_of(answer, 2) != 0,
            Current::Page(resource, revision) => {
                self.relists.learn(resource, revision, answer);
                true
            }
            Current::Nothing => true,
        };
        self.conflicts += u64::from(!done);
    }

    fn end(&mut self, worker: usize, request: &mut Vec<u8>) -> Next {
        if !matches!(self.current[worker], Current::Grant) {
            return Next::Done;
        }
        self.current[worker] = Current::Event;
        self.events.write(request);
        Next::Call(method::TXN)
    }

    fn failed(&mut self, worker: usize) {
        match std::mem::take(&mut self.current[worker]) {
            Current::Renewal(at) => self.leases.release(at),
            Current::Status(at) => self.nodes.release(at),
            Current::Pod { at, .. } => self.pods.release(at),
            _ => {}
        }
    }

    fn conflicts(&self) -> u64 {
        self.conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap, HashSet};

    fn options(nodes: usize) -> Options {
        let scenario = "kube".to_owned();
        Options { scenario, nodes, concurrency: 8, ..Options::default() }
    }

    fn known(options: &Options) -> Known {
        let revisions = |store: &Store| vec![if store.standing { 5 } else { 0 }; store.count];
        let objects: HashMap<_, _> =
            stores(options).iter().map(|store| (store.prefix, revisions(store))).collect();
        Known { revision: 9, objects }
    }

    fn whole(options: &Options) -> Kube {
        let part = Part { at: 0, of: 1, first: 0, workers: 8, all: 8 };
        Kube::new(options, &part, &known(options))
    }

    /// A TxnResponse.
    fn answer(succeeded: bool, revision: u64) -> Vec<u8> {
        let mut answer = Vec::new();
        wire::nested(&mut answer, 1, |header| wire::number(header, 3, revision));
        wire::number(&mut answer, 2, u64::from(succeeded));
        answer
    }

    /// The key of a transaction, the mod revision it expects, and the number of its operation.
    fn txn(request: &[u8]) -> (Vec<u8>, u64, u32) {
        let compare = wire::bytes_of(request, 1);
        let operation = wire::Fields(wire::bytes_of(request, 2)).next().map_or(0, |(at, _)| at);
        (wire::bytes_of(compare, 3).to_vec(), wire::number_of(compare, 6), operation)
    }

    #[test]
    fn the_mix_is_what_it_says_and_has_everything_from_the_start() {
        let mut kube = whole(&options(100));
        assert_eq!((0..5).map(|_| kube.class()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let mut counts = BTreeMap::new();
        for _ in 0..100_000 {
            *counts.entry(CLASSES[kube.class()]).or_insert(0u64) += 1;
        }
        for (name, share) in [
            ("status", STATUS_SHARE),
            ("pod", POD_SHARE),
            ("event", EVENT_SHARE),
            ("list", LIST_SHARE),
        ] {
            assert!(counts[name].abs_diff(share * 10) <= 10, "{name} {counts:?}");
        }
    }

    #[test]
    fn so_many_nodes_renew_their_leases_each_ten_seconds() {
        let all = rate(&options(100_000));
        let others = STATUS_SHARE + POD_SHARE + EVENT_SHARE + LIST_SHARE;
        assert!((all * (10_000 - others) as f64 / 10_000.0 - 10_000.0).abs() < 1e-6);
        let renew = Options { scenario: "renew".to_owned(), ..options(100_000) };
        assert_eq!(rate(&renew), 10_000.0);
        assert_eq!(rate(&Options::default()), 0.0);
    }

    #[test]
    fn a_renewal_updates_what_it_knows_and_learns_from_the_answer() {
        let mut kube = whole(&Options { scenario: "renew".to_owned(), ..options(1) });
        let mut request = Vec::new();
        kube.begin(0, 7, &mut request);
        assert_eq!(txn(&request), (format!("{LEASES}00000000").into_bytes(), 5, 2));
        assert!(!wire::bytes_of(&request, 3).is_empty(), "an Else that reads it");
        kube.message(0, &answer(true, 77));
        request.clear();
        kube.begin(0, 7, &mut request);
        assert_eq!(txn(&request).1, 77);
        assert_eq!(kube.conflicts(), 0);
        kube.message(0, &answer(false, 78));
        assert_eq!(kube.conflicts(), 1);
        // It is not there: made anew, without an Else.
        request.clear();
        kube.begin(0, 7, &mut request);
        assert_eq!(txn(&request).1, 0);
        assert!(wire::bytes_of(&request, 3).is_empty());
    }

    #[test]
    fn a_pod_is_made_changed_and_deleted() {
        let mut kube = whole(&options(1));
        let pods = kube.updates.len();
        let mut life = Vec::new();
        for revision in 100.. {
            let mut request = Vec::new();
            kube.current[0] = kube.pod(0, &mut request);
            let (key, expected, operation) = txn(&request);
            if key.ends_with(b"pod-00000000") {
                life.push((expected == 0, operation));
            }
            kube.message(0, &answer(true, revision));
            if life.len() == 6 {
                break;
            }
            assert!(revision < 100 + 6 * pods as u64);
        }
        let (create, update, delete) = ((true, 2), (false, 2), (false, 3));
        assert_eq!(life, [create, update, update, update, delete, create]);
    }

    #[test]
    fn events_share_leases() {
        let mut kube = whole(&options(1));
        kube.begun = 3;
        let mut request = Vec::new();
        let (next, class) = kube.begin(0, 0, &mut request);
        assert!(matches!(next, Next::Call(method::LEASE_GRANT)) && CLASSES[class] == "event");
        let mut granted = Vec::new();
        wire::number(&mut granted, 2, 4711);
        kube.message(0, &granted);
        request.clear();
        assert!(matches!(kube.end(0, &mut request), Next::Call(method::TXN)));
        let put = wire::bytes_of(wire::bytes_of(&request, 2), 2);
        assert_eq!(wire::number_of(put, 3), 4711);
        kube.message(0, &answer(true, 10));
        assert!(matches!(kube.end(0, &mut request), Next::Done));
        assert_eq!(kube.events.left, EVENTS_A_LEASE - 1);
    }

    #[test]
    fn lists_go_on_at_their_revision_and_then_to_the_next_resource() {
        let mut relists = Relists::new(WATCHED, PAGE, 0);
        let mut request = Vec::new();
        let (resource, revision) = relists.page(&mut request);
        assert_eq!((wire::bytes_of(&request, 1), revision), (WATCHED[0].as_bytes(), 0));
        assert_eq!(wire::number_of(&request, 3), PAGE);
        let mut page = answer(false, 50)[..4].to_vec();
        wire::nested(&mut page, 2, |kv| wire::bytes(kv, 1, b"/registry/leases/x"));
        wire::number(&mut page, 3, 1);
        relists.learn(resource, revision, &page);
        request.clear();
        let (resource, revision) = relists.page(&mut request);
        assert_eq!(wire::bytes_of(&request, 1), b"/registry/leases/x\0");
        assert_eq!((wire::number_of(&request, 4), revision), (50, 50));
        relists.learn(resource, revision, &[]);
        request.clear();
        relists.page(&mut request);
        assert_eq!(wire::bytes_of(&request, 1), WATCHED[1].as_bytes());
    }

    #[test]
    fn threads_have_objects_of_their_own() {
        let options = Options { scenario: "renew".to_owned(), ..options(11) };
        let known = known(&options);
        let mut keys = HashSet::new();
        for at in 0..3 {
            let part = Part { at, of: 3, first: 3 * at, workers: 4, all: 11 };
            let mut kube = Kube::new(&options, &part, &known);
            for worker in 0..[4, 4, 3][at] {
                let mut request = Vec::new();
                kube.begin(worker, 0, &mut request);
                assert!(keys.insert(txn(&request).0));
            }
        }
        assert_eq!(keys.len(), 11);
    }
}

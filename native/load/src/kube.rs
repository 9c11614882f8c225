//! What the nodes of a Kubernetes cluster do to its store.
//!
//! The rates are those of an idle but large cluster: each node renews its Lease every 10 s and
//! reports its status every 5 minutes; pods come, change and go; events are written and never
//! touched again. Sizes are those of the objects that kube-apiserver writes (protobuf).

use crate::options::Options;
use crate::scenario::{Next, Scenario, filler, method};
use crate::wire;

/// A Lease of kube-node-lease.
const LEASE_BYTES: usize = 460;
/// A Node with its conditions and images.
const NODE_BYTES: usize = 6_000;
const POD_BYTES: usize = 2_500;
const EVENT_BYTES: usize = 800;

/// Of 10,000 units of work; the rest are renewals. By nodes and second: 0.1 renewals, 0.0033 status
/// reports, and a churn of pods and events that is a tenth of the renewals.
const STATUS_SHARE: u64 = 290;
const POD_SHARE: u64 = 600;
const EVENT_SHARE: u64 = 300;

/// Renewals a second and node, all the rest on top.
const RENEWALS_A_NODE: f64 = 0.1;

/// Units of work a second that so many nodes make.
pub fn rate(nodes: usize) -> f64 {
    let share = (10_000 - STATUS_SHARE - POD_SHARE - EVENT_SHARE) as f64 / 10_000.0;
    nodes as f64 * RENEWALS_A_NODE / share
}

const CLASSES: [&str; 4] = ["renew", "status", "pod", "event"];

/// What a worker has under way.
#[derive(Clone, Copy)]
struct Current {
    class: usize,
    object: usize,
    deleting: bool,
}

pub(crate) struct Kube {
    leases: Objects,
    nodes: Objects,
    pods: Objects,
    events: usize,
    first: usize,
    step: usize,
    draw: u64,
    current: Vec<Current>,
    conflicts: u64,
    event_value: Vec<u8>,
}

/// Objects of one resource that this thread owns, and the revisions it knows them at.
struct Objects {
    prefix: Vec<u8>,
    value: Vec<u8>,
    revisions: Vec<u64>,
    busy: Vec<bool>,
    next: usize,
    first: usize,
    step: usize,
}

impl Objects {
    fn new(prefix: &str, bytes: usize, count: usize, first: usize, step: usize) -> Objects {
        let own = (count.saturating_sub(first)).div_ceil(step).max(1);
        Objects {
            prefix: prefix.as_bytes().to_vec(),
            value: filler(bytes),
            revisions: vec![0; own],
            busy: vec![false; own],
            next: 0,
            first,
            step,
        }
    }

    /// The next object that nobody works on.
    fn pick(&mut self) -> usize {
        for _ in 0..self.busy.len() {
            let at = self.next;
            self.next = (self.next + 1) % self.busy.len();
            if !self.busy[at] {
                self.busy[at] = true;
                return at;
            }
        }
        self.next
    }

    fn key(&self, at: usize) -> Vec<u8> {
        crate::scenario::key(&self.prefix, self.first + at * self.step)
    }

    fn update(&mut self, at: usize, now_ns: u64, request: &mut Vec<u8>) {
        if let Some(stamp) = self.value.first_chunk_mut::<8>() {
            *stamp = now_ns.to_be_bytes();
        }
        wire::update(request, &self.key(at), &self.value, self.revisions[at]);
    }

    fn learn(&mut self, at: usize, answer: &[u8], deleting: bool) -> bool {
        self.busy[at] = false;
        let succeeded = wire::number_of(answer, 2) != 0;
        self.revisions[at] = match (succeeded, deleting) {
            (true, true) => 0,
            (true, false) => wire::revision(answer),
            (false, _) => wire::read_revision(answer).max(1),
        };
        succeeded
    }
}

impl Kube {
    pub fn new(options: &Options, first: usize, workers: usize, all: usize) -> Kube {
        // Threads share the objects out by remainder.
        let step = all.div_ceil(workers.max(1)).max(1);
        let first = if workers == 0 { 0 } else { first / workers.max(1) };
        let nodes = options.nodes;
        let objects = |prefix, bytes, count| Objects::new(prefix, bytes, count, first, step);
        Kube {
            leases: objects("/registry/leases/kube-node-lease/node-", LEASE_BYTES, nodes),
            nodes: objects("/registry/minions/node-", NODE_BYTES, nodes),
            pods: objects("/registry/pods/default/pod-", POD_BYTES, nodes),
            events: 0,
            first,
            step,
            draw: first as u64,
            current: vec![Current { class: 0, object: 0, deleting: false }; workers],
            conflicts: 0,
            event_value: filler(EVENT_BYTES),
        }
    }

    fn objects(&mut self, class: usize) -> Option<&mut Objects> {
        match class {
            0 => Some(&mut self.leases),
            1 => Some(&mut self.nodes),
            2 => Some(&mut self.pods),
            _ => None,
        }
    }
}

impl Scenario for Kube {
    fn classes(&self) -> &'static [&'static str] {
        &CLASSES
    }

    fn begin(&mut self, worker: usize, now_ns: u64, request: &mut Vec<u8>) -> (Next, usize) {
        // A step that has no common divisor with 10,000 spreads the classes evenly.
        self.draw = (self.draw + 6_181) % 10_000;
        let class = match self.draw {
            n if n < STATUS_SHARE => 1,
            n if n < STATUS_SHARE + POD_SHARE => 2,
            n if n < STATUS_SHARE + POD_SHARE + EVENT_SHARE => 3,
            _ => 0,
        };
        let mut deleting = false;
        let mut object = 0;
        if let Some(objects) = self.objects(class) {
            object = objects.pick();
            // A pod is made, changed as it starts, and goes.
            deleting = class == 2 && objects.revisions[object] > 0 && objects.next % 4 == 3;
            if deleting {
                let (key, revision) = (objects.key(object), objects.revisions[object]);
                wire::delete(request, &key, revision);
            } else {
                objects.update(object, now_ns, request);
            }
        } else {
            self.events += 1;
            let n = self.first + self.events * self.step;
            let key = crate::scenario::key(b"/registry/events/default/event-", n);
            wire::update(request, &key, &self.event_value, 0);
        }
        self.current[worker] = Current { class, object, deleting };
        (Next::Call(method::TXN), class)
    }

    fn message(&mut self, worker: usize, answer: &[u8]) {
        let Current { class, object, deleting } = self.current[worker];
        if let Some(objects) = self.objects(class)
            && !objects.learn(object, answer, deleting)
        {
            self.conflicts += 1;
        }
    }

    fn conflicts(&self) -> u64 {
        self.conflicts
    }
}

//! Kubernetes objects as a load knows them: one thread's part of a resource, and how it is listed.

use crate::scenario::{filler, key};
use crate::wire::{self, Range};

/// Objects of one resource that this thread owns, and the revisions it knows them at. Threads
/// share the objects out by remainder.
pub(crate) struct Objects {
    prefix: &'static str,
    value: Vec<u8>,
    revisions: Vec<u64>,
    busy: Vec<bool>,
    next: usize,
    at: usize,
    of: usize,
}

impl Objects {
    /// The part `at` of `of` of the objects whose mod revisions are `known`, by number (0: not
    /// there).
    pub fn new(prefix: &'static str, bytes: usize, known: &[u64], at: usize, of: usize) -> Objects {
        let mut revisions: Vec<u64> = known.iter().skip(at).step_by(of).copied().collect();
        if revisions.is_empty() {
            revisions.push(0);
        }
        let busy = vec![false; revisions.len()];
        Objects { prefix, value: filler(bytes), revisions, busy, next: 0, at, of }
    }

    /// The next object that nobody works on.
    pub fn pick(&mut self) -> usize {
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.revisions.len()
    }

    /// Whether the object is there, as far as is known.
    pub fn exists(&self, at: usize) -> bool {
        self.revisions[at] != 0
    }

    fn key(&self, at: usize) -> Vec<u8> {
        key(self.prefix.as_bytes(), self.at + at * self.of)
    }

    /// The transaction that creates or updates the object, with the time in its first bytes.
    pub fn update(&mut self, at: usize, now_ns: u64, request: &mut Vec<u8>) {
        if let Some(stamp) = self.value.first_chunk_mut::<8>() {
            *stamp = now_ns.to_be_bytes();
        }
        wire::update(request, &self.key(at), &self.value, self.revisions[at], 0);
    }

    /// The transaction that deletes the object.
    pub fn delete(&self, at: usize, request: &mut Vec<u8>) {
        wire::delete(request, &self.key(at), self.revisions[at]);
    }

    /// Learns from the answer of a transaction; whether it did what it was to do.
    pub fn learn(&mut self, at: usize, answer: &[u8], deleting: bool) -> bool {
        self.busy[at] = false;
        let succeeded = wire::number_of(answer, 2) != 0;
        self.revisions[at] = match (succeeded, deleting) {
            (true, true) => 0,
            (true, false) => wire::revision(answer),
            // A create that found something has no Else that says what. Any number but 0 will do
            // to be told the next time; and a deletion that found nothing leaves 0.
            (false, _) if self.revisions[at] == 0 => 1,
            (false, _) => wire::read_revision(answer),
        };
        succeeded
    }

    /// Nobody works on it any more; what became of it, the next transaction will tell.
    pub fn release(&mut self, at: usize) {
        self.busy[at] = false;
    }
}

/// Lists of resources in turn, page by page, each at the revision of its first page.
pub(crate) struct Relists {
    prefixes: &'static [&'static str],
    limit: u64,
    /// Lists that were begun.
    begun: usize,
    /// Where lists go on: the resource, the first key of the next page, the revision.
    waiting: Vec<(usize, Vec<u8>, u64)>,
}

impl Relists {
    /// Of these resources, so many objects a page. Threads begin with different ones.
    pub fn new(prefixes: &'static [&'static str], limit: u64, at: usize) -> Relists {
        Relists { prefixes, limit, begun: at, waiting: Vec::new() }
    }

    /// Asks for the next page; the resource, and the revision (0: the first page).
    pub fn page(&mut self, request: &mut Vec<u8>) -> (usize, u64) {
        let (resource, key, revision) = self.waiting.pop().unwrap_or_else(|| {
            let resource = self.begun % self.prefixes.len();
            self.begun += 1;
            (resource, self.prefixes[resource].as_bytes().to_vec(), 0)
        });
        let end = wire::prefix_end(self.prefixes[resource].as_bytes());
        let range = Range { end: &end, limit: self.limit, revision, ..wire::get(&key) };
        wire::range(request, &range);
        (resource, revision)
    }

    /// A page came.
    pub fn learn(&mut self, resource: usize, revision: u64, answer: &[u8]) {
        if let Some(next) = wire::next_page(answer) {
            let revision = if revision == 0 { wire::revision(answer) } else { revision };
            self.waiting.push((resource, next, revision));
        }
    }
}

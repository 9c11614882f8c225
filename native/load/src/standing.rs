//! What comes before a load: writing the objects that are to be there, and learning of them.

use crate::options::Options;
use crate::scenario::{Next, Scenario, filler, key, method};
use crate::wire::{self, Range};

/// Keys in one transaction: half of what etcd takes.
pub(crate) const FILL_BATCH: usize = 64;
/// Keys in one answer.
const LEARN_LIMIT: u64 = 10_000;

/// Every key once, many in one transaction. Workers that find nothing left to write rest.
pub(crate) struct Fill {
    prefix: Vec<u8>,
    value: Vec<u8>,
    keys: usize,
    next: usize,
}

impl Fill {
    /// The keys that the options name.
    pub fn new(options: &Options) -> Fill {
        Fill::of(&options.prefix, options.value_bytes, options.keys)
    }

    /// So many keys below a prefix.
    pub fn of(prefix: &str, value_bytes: usize, keys: usize) -> Fill {
        Fill { prefix: prefix.as_bytes().to_vec(), value: filler(value_bytes), keys, next: 0 }
    }

    /// How many it writes.
    pub fn keys(&self) -> usize {
        self.keys
    }

    fn batch(&mut self, request: &mut Vec<u8>) -> Next {
        if self.next >= self.keys {
            return Next::Done;
        }
        let end = self.keys.min(self.next + FILL_BATCH);
        for n in self.next..end {
            let key = key(&self.prefix, n);
            wire::nested(request, 2, |op| {
                wire::nested(op, 2, |put| wire::put(put, &key, &self.value, 0));
            });
        }
        self.next = end;
        Next::Call(method::TXN)
    }
}

impl Scenario for Fill {
    fn classes(&self) -> &'static [&'static str] {
        &["fill"]
    }

    fn begin(&mut self, _: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        (self.batch(request), 0)
    }

    fn end(&mut self, _: usize, request: &mut Vec<u8>) -> Next {
        self.batch(request)
    }
}

/// Lists keys, page by page at one revision, for the mod revisions of what is there.
pub(crate) struct Learn {
    prefix: Vec<u8>,
    end: Vec<u8>,
    next: Option<Vec<u8>>,
    /// The revision of the first page.
    pub revision: u64,
    /// By number of the key; 0 where there is none.
    pub revisions: Vec<u64>,
}

impl Learn {
    /// Of the keys with numbers below `count`.
    pub fn new(prefix: &str, count: usize) -> Learn {
        let prefix = prefix.as_bytes().to_vec();
        let end = wire::prefix_end(&prefix);
        Learn { next: Some(prefix.clone()), prefix, end, revision: 0, revisions: vec![0; count] }
    }

    fn page(&mut self, request: &mut Vec<u8>) -> Next {
        let Some(key) = self.next.take() else { return Next::Done };
        let (end, revision) = (&self.end, self.revision);
        let range = Range { end, revision, limit: LEARN_LIMIT, keys_only: true, ..wire::get(&key) };
        wire::range(request, &range);
        Next::Call(method::RANGE)
    }
}

impl Scenario for Learn {
    fn classes(&self) -> &'static [&'static str] {
        &["learn"]
    }

    fn begin(&mut self, _: usize, _: u64, request: &mut Vec<u8>) -> (Next, usize) {
        (self.page(request), 0)
    }

    fn message(&mut self, _: usize, answer: &[u8]) {
        for kv in wire::Fields(answer).filter(|(at, _)| *at == 2).map(|(_, value)| value.bytes()) {
            let name = wire::bytes_of(kv, 1).get(self.prefix.len()..).unwrap_or_default();
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            if let Some(known) = number.and_then(|n: usize| self.revisions.get_mut(n)) {
                *known = wire::number_of(kv, 3);
            }
        }
        if self.revision == 0 {
            self.revision = wire::revision(answer);
        }
        self.next = wire::next_page(answer);
    }

    fn end(&mut self, _: usize, request: &mut Vec<u8>) -> Next {
        self.page(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_written_once() {
        let mut fill = Fill::of("/a/", 10, 150);
        let mut keys = Vec::new();
        loop {
            let mut request = Vec::new();
            if matches!(fill.end(0, &mut request), Next::Done) {
                break;
            }
            for (_, op) in wire::Fields(&request) {
                keys.push(wire::bytes_of(wire::bytes_of(op.bytes(), 2), 1).to_vec());
            }
        }
        assert_eq!(keys, (0..150).map(|n| key(b"/a/", n)).collect::<Vec<_>>());
    }

    /// An answer with the keys of these numbers, each with 100 and its number as mod revision.
    fn page(numbers: &[usize], revision: u64, more: bool) -> Vec<u8> {
        let mut answer = Vec::new();
        wire::nested(&mut answer, 1, |header| wire::number(header, 3, revision));
        for n in numbers {
            wire::nested(&mut answer, 2, |kv| {
                wire::bytes(kv, 1, &key(b"/a/", *n));
                wire::number(kv, 3, 100 + *n as u64);
            });
        }
        wire::number(&mut answer, 3, u64::from(more));
        answer
    }

    #[test]
    fn revisions_are_learnt_from_pages_of_one_revision() {
        let mut learn = Learn::new("/a/", 4);
        let mut request = Vec::new();
        learn.begin(0, 0, &mut request);
        learn.message(0, &page(&[0, 2], 300, true));
        request.clear();
        assert!(matches!(learn.end(0, &mut request), Next::Call(method::RANGE)));
        assert_eq!(wire::bytes_of(&request, 1), b"/a/00000002\0");
        assert_eq!(wire::number_of(&request, 4), 300);
        learn.message(0, &page(&[3, 9], 305, false));
        assert!(matches!(learn.end(0, &mut request), Next::Done));
        assert_eq!((learn.revision, learn.revisions), (300, vec![100, 0, 102, 103]));
    }
}

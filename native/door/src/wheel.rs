//! Deadlines: a timer wheel whose memory is bounded by what is live.
//!
//! Nearly every call has a deadline and nearly none reaches it, so setting and forgetting one must
//! cost next to nothing. The links live in one array that is indexed like the table of live calls.

/// Buckets; a deadline further away than these many ticks is looked at once a turn of the wheel.
const BUCKETS: usize = 2048;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    previous: u32,
    next: u32,
    bucket: u32,
    /// What the owner wants back when the time is up.
    key: u64,
    due: u64,
}

const FREE: Node = Node { previous: NONE, next: NONE, bucket: NONE, key: 0, due: 0 };

/// See the module. Time is counted in ticks of the caller's choice.
pub struct Wheel {
    heads: Vec<u32>,
    nodes: Vec<Node>,
    now: u64,
    len: usize,
}

impl Wheel {
    /// An empty wheel at tick `now`.
    pub fn new(now: u64) -> Wheel {
        Wheel { heads: vec![NONE; BUCKETS], nodes: Vec::new(), now, len: 0 }
    }

    /// Deadlines that are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no deadline is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the deadline of slot `index`, which has none. One in the past comes with the next tick.
    pub fn insert(&mut self, index: u32, key: u64, due: u64) {
        let at = index as usize;
        if self.nodes.len() <= at {
            self.nodes.resize(at + 1, FREE);
        }
        let due = due.max(self.now + 1);
        let bucket = (due % BUCKETS as u64) as u32;
        let next = match self.heads.get_mut(bucket as usize) {
            Some(head) => std::mem::replace(head, index),
            None => return,
        };
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = index;
        }
        if let Some(node) = self.nodes.get_mut(at) {
            *node = Node { previous: NONE, next, bucket, key, due };
            self.len += 1;
        }
    }

    /// Forgets the deadline of slot `index`, if it has one.
    pub fn remove(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        let Node { previous, next, bucket, .. } = *node;
        if bucket == NONE {
            return;
        }
        *node = FREE;
        self.len -= 1;
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = previous;
        }
        match self.nodes.get_mut(previous as usize) {
            Some(node) => node.next = next,
            None => {
                if let Some(head) = self.heads.get_mut(bucket as usize) {
                    *head = next;
                }
            }
        }
    }

    /// Moves on to tick `now`; keys whose time is up go to `expired`.
    pub fn advance(&mut self, now: u64, expired: &mut Vec<u64>) {
        if now <= self.now {
            return;
        }
        if self.len == 0 {
            self.now = now;
            return;
        }
        // Behind by more than a turn: each bucket once is enough.
        let first = (self.now + 1).max(now.saturating_sub(BUCKETS as u64 - 1));
        self.now = now;
        for tick in first..=now {
            let head = self.heads.get((tick % BUCKETS as u64) as usize);
            let mut index = head.copied().unwrap_or(NONE);
            while let Some(node) = self.nodes.get(index as usize) {
                let Node { next, key, due, .. } = *node;
                if due <= now {
                    expired.push(key);
                    self.remove(index);
                }
                index = next;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_plain_map() {
        // A small generator of our own: no dependency for one test.
        let mut seed = 12345u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut wheel = Wheel::new(1000);
        let mut plain: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut now = 1000;
        for step in 0..200_000u64 {
            match random(4) {
                0 | 1 => {
                    let index = random(500) as u32;
                    if let std::collections::btree_map::Entry::Vacant(vacant) = plain.entry(index) {
                        let due = now + random(5000);
                        wheel.insert(index, step, due);
                        vacant.insert((step, due.max(now + 1)));
                    }
                }
                2 => {
                    let index = random(500) as u32;
                    wheel.remove(index);
                    plain.remove(&index);
                }
                _ => {
                    now += if random(50) == 0 { random(6000) } else { random(4) };
                    let mut expired = Vec::new();
                    wheel.advance(now, &mut expired);
                    let mut due: Vec<u64> = plain
                        .values()
                        .filter(|(_, due)| *due <= now)
                        .map(|(key, _)| *key)
                        .collect();
                    plain.retain(|_, (_, due)| *due > now);
                    expired.sort_unstable();
                    due.sort_unstable();
                    assert_eq!(expired, due, "at step {step}");
                }
            }
            assert_eq!(wheel.len(), plain.len());
        }
    }
}

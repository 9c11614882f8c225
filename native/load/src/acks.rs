//! When writes were acknowledged, by their revisions.

/// Revisions that are kept, as far as memory goes: half a gigabyte.
const KEPT_MAX: u64 = 1 << 26;

/// When this writer had the answers to its writes. Revisions follow one another, so that a place in
/// a list is enough; those that others made are holes.
#[derive(Default)]
pub(crate) struct Acks {
    first: u64,
    at_ns: Vec<u64>,
}

impl Acks {
    /// The write that made this revision was answered.
    pub fn note(&mut self, revision: u64, now_ns: u64) {
        if self.at_ns.is_empty() {
            self.first = revision;
        }
        // Of writes under way at once the first answer need not be that of the first revision.
        if revision < self.first {
            let missing = self.first - revision;
            if missing < KEPT_MAX {
                self.at_ns.splice(0..0, (0..missing).map(|_| 0));
                self.first = revision;
            }
        }
        let at = revision.wrapping_sub(self.first);
        if at < KEPT_MAX {
            let at = at as usize;
            if at >= self.at_ns.len() {
                self.at_ns.resize(at + 1, 0);
            }
            self.at_ns[at] = now_ns;
        }
    }

    /// How long ago that was; 0 if the answer is still to come.
    pub fn since(&self, revision: u64, now_ns: u64) -> u64 {
        let at = revision.wrapping_sub(self.first) as usize;
        match self.at_ns.get(at) {
            None | Some(0) => 0,
            Some(then) => now_ns.saturating_sub(*then),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_by_revision_in_whatever_order_they_came() {
        let mut acks = Acks::default();
        assert_eq!(acks.since(7, 100), 0);
        acks.note(12, 1000);
        acks.note(10, 1100);
        acks.note(15, 1200);
        let since = |revision| acks.since(revision, 2000);
        assert_eq!([10, 12, 15].map(since), [900, 1000, 800]);
        // Another's, one that is still under way, and ones from before and after.
        assert_eq!([11, 14, 9, 16, 0, u64::MAX].map(since), [0; 6]);
        assert_eq!(acks.since(12, 900), 0);
    }

    #[test]
    fn a_revision_from_nowhere_costs_no_memory() {
        let mut acks = Acks::default();
        acks.note(1 << 40, 5);
        acks.note(1, 6);
        acks.note(u64::MAX, 7);
        assert_eq!(acks.at_ns.len(), 1);
        assert_eq!(acks.since(1 << 40, 9), 4);
    }
}

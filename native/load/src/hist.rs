//! A histogram of latencies: fixed memory, values exact to about 1.6 percent.

use serde::Serialize;

/// Buckets for each doubling.
const SUB: u64 = 64;
const SUB_BITS: u32 = 6;
/// Up to about 18 minutes, in nanoseconds.
const DOUBLINGS: usize = 35;

/// Counts of values in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; (DOUBLINGS + 1) * SUB as usize], count: 0, sum: 0, max: 0 }
    }
}

/// What is reported of one. Times in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Values counted.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: f64,
    /// Nine tenths.
    pub p90_us: f64,
    /// 99 percent.
    pub p99_us: f64,
    /// 99.9 percent.
    pub p999_us: f64,
    /// 99.99 percent.
    pub p9999_us: f64,
    /// All of them.
    pub max_us: f64,
    /// For plots: (upper bound, how many values are at most that), where it changes.
    pub cumulative: Vec<(f64, u64)>,
}

impl Histogram {
    fn bucket(ns: u64) -> usize {
        if ns < SUB {
            return ns as usize;
        }
        let shift = 63 - ns.leading_zeros() - SUB_BITS;
        let at = (u64::from(shift) + 1) * SUB + ((ns >> shift) - SUB);
        (at as usize).min((DOUBLINGS + 1) * SUB as usize - 1)
    }

    /// The largest value of a bucket.
    fn bound(at: usize) -> u64 {
        let at = at as u64;
        if at < SUB {
            return at;
        }
        let shift = at / SUB - 1;
        ((SUB + at % SUB + 1) << shift) - 1
    }

    /// Counts a value.
    pub fn record(&mut self, ns: u64) {
        self.counts[Self::bucket(ns)] += 1;
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// Adds all values of another.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn quantile_us(&self, q: f64) -> f64 {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::bound(at).min(self.max) as f64 / 1e3;
            }
        }
        0.0
    }

    /// What is worth knowing of it.
    pub fn summary(&self) -> Summary {
        let mut cumulative = Vec::new();
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            seen += count;
            cumulative.push((Self::bound(at).min(self.max) as f64 / 1e3, seen));
        }
        Summary {
            count: self.count,
            mean_us: self.sum as f64 / self.count.max(1) as f64 / 1e3,
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            p9999_us: self.quantile_us(0.9999),
            max_us: self.max as f64 / 1e3,
            cumulative,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_in_their_buckets() {
        for ns in (0..10_000).chain((0..50).map(|n| 1u64 << n)).chain([u64::MAX]) {
            let at = Histogram::bucket(ns);
            if ns < 1 << 40 {
                assert!(Histogram::bound(at) >= ns);
                assert!(at == 0 || Histogram::bound(at - 1) < ns, "{ns}");
                assert!(Histogram::bound(at) as f64 <= ns as f64 * 1.02 + 1.0);
            }
        }
    }

    #[test]
    fn quantiles_of_a_straight_line() {
        let mut all = Histogram::default();
        let mut half = Histogram::default();
        for us in 1..=1000u64 {
            if us % 2 == 0 { &mut all } else { &mut half }.record(us * 1000);
        }
        all.merge(&half);
        let summary = all.summary();
        assert_eq!(summary.count, 1000);
        assert!((summary.p50_us - 500.0).abs() < 10.0, "{}", summary.p50_us);
        assert!((summary.p99_us - 990.0).abs() < 16.0);
        assert_eq!(summary.max_us, 1000.0);
        assert_eq!(summary.cumulative.last().map(|last| last.1), Some(1000));
    }
}

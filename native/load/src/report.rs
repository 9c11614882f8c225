//! What a run reports, and what the threads of a run find for it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hist::{Histogram, Summary};
use crate::options::Options;
use crate::process::Usage;

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
    /// With a rate: units that were due and not done when the time was over. Many of them say that
    /// the rate was not held; their latencies, which would be the longest, are in no number here.
    pub unfinished: u64,
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
    /// watch, with one thread: from the writer's having its answer to the watcher's having the
    /// event; 0 for one that came before the answer.
    pub event_delay: Summary,
    /// CPU that making the load took, a unit of work.
    pub own_cpu_us: f64,
    /// What the server used; there when its process was named.
    pub server: Option<Usage>,
}

impl Report {
    /// One line of JSON.
    pub fn to_json(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|why| why.to_string())
    }
}

/// What one thread found.
#[derive(Default)]
pub(crate) struct Found {
    pub all: Histogram,
    pub classes: BTreeMap<&'static str, Histogram>,
    pub lag: Histogram,
    pub delay: Histogram,
    pub errors: BTreeMap<String, u64>,
    pub conflicts: u64,
    pub dropped: u64,
    pub unfinished: u64,
    pub events: u64,
    pub received: u64,
}

impl Found {
    /// Adds what another thread found.
    pub fn merge(&mut self, other: Found) {
        self.all.merge(&other.all);
        self.lag.merge(&other.lag);
        self.delay.merge(&other.delay);
        for (class, histogram) in &other.classes {
            self.classes.entry(class).or_default().merge(histogram);
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.conflicts += other.conflicts;
        self.dropped += other.dropped;
        self.unfinished += other.unfinished;
        self.events += other.events;
        self.received += other.received;
    }

    /// What is reported of a run that took so long.
    pub fn report(self, options: &Options, seconds: f64, own_cpu_s: f64) -> Report {
        let requests = self.all.count();
        Report {
            options: Some(options.clone()),
            seconds,
            requests,
            rate: requests as f64 / seconds,
            errors: self.errors,
            conflicts: self.conflicts,
            dropped: self.dropped,
            unfinished: self.unfinished,
            received_mb_s: self.received as f64 / seconds / 1e6,
            latency: self.all.summary(),
            classes: if self.classes.len() > 1 {
                self.classes.iter().map(|(name, h)| ((*name).to_owned(), h.summary())).collect()
            } else {
                BTreeMap::new()
            },
            events: self.events,
            event_rate: self.events as f64 / seconds,
            event_lag: self.lag.summary(),
            event_delay: self.delay.summary(),
            own_cpu_us: own_cpu_s * 1e6 / requests.max(1) as f64,
            server: None,
        }
    }
}

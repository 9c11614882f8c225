//! What stands before a load is measured: the keys it reads or updates, and what it knows of them.

use std::io;
use std::time::{Duration, Instant};

use mio::Events;

use crate::driver::{Driver, READ_BYTES};
use crate::kube;
use crate::options::Options;
use crate::run::Progress;
use crate::scenario::{Known, Scenario};
use crate::standing::{FILL_BATCH, Fill, Learn};

/// A run that does not get going is given up after this.
pub(crate) const SETUP_MAX: Duration = Duration::from_secs(300);
/// Transactions of the filling that are under way at once.
const FILL_WORKERS: usize = 64;

/// Writes what is to be there, and reads what the load has to know of it.
pub(crate) fn set_up(
    options: &Options,
    epoch: Instant,
    progress: Progress<'_>,
) -> Result<Known, String> {
    let mut known = Known::default();
    match options.scenario.as_str() {
        "fill" => fill(options, Fill::new(options), epoch, &mut |calls| {
            let written = (calls * FILL_BATCH as u64).min(options.keys as u64);
            progress(written, written as f64 / options.keys.max(1) as f64)
        })?,
        "range" | "count" | "list" | "range-stream" | "mixed" if options.fill => {
            fill(options, Fill::new(options), epoch, &mut |_| progress(0, 0.0))?;
        }
        "kube" | "renew" => {
            for store in kube::stores(options) {
                if options.fill && store.standing {
                    let standing = Fill::of(store.prefix, store.value_bytes, store.count);
                    fill(options, standing, epoch, &mut |_| progress(0, 0.0))?;
                }
                let mut learn = Learn::new(store.prefix, store.count);
                let alone = one_connection(options, 1);
                finish(&alone, &mut learn, epoch, &mut |_| progress(0, 0.0))?;
                known.revision = known.revision.max(learn.revision);
                known.objects.insert(store.prefix, learn.revisions);
            }
        }
        _ => {}
    }
    Ok(known)
}

/// Writes all keys, many in one transaction.
fn fill(
    options: &Options,
    mut what: Fill,
    epoch: Instant,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), String> {
    let workers = FILL_WORKERS.min(what.keys().div_ceil(FILL_BATCH)).max(1);
    finish(&one_connection(options, workers), &mut what, epoch, progress)
}

/// Options for something that comes before the load.
fn one_connection(options: &Options, concurrency: usize) -> Options {
    Options {
        scenario: "setup".to_owned(),
        conns: options.conns.min(concurrency),
        concurrency,
        threads: 1,
        rate: 0.0,
        ..options.clone()
    }
}

/// Has each worker do one unit of work, however many calls that is. `progress` is told the calls
/// that are done, as the scenario counts them, and ends it with false.
fn finish(
    options: &Options,
    scenario: &mut dyn Scenario,
    epoch: Instant,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), String> {
    let mut driver = Driver::with(options, 0, epoch, Box::new(scenario), Vec::new())?;
    let mut events = Events::with_capacity(64);
    let mut scratch = vec![0; READ_BYTES];
    let deadline = Instant::now() + SETUP_MAX;
    let named = |why: io::Error| format!("before the load: {why}");
    driver.once();
    while !driver.finished() {
        if Instant::now() > deadline {
            return Err("what has to be there before the load takes too long".to_owned());
        }
        driver.turn(&mut events, &mut scratch, Duration::from_millis(50)).map_err(named)?;
        if let Some(error) = driver.error() {
            return Err(format!("before the load: {error}"));
        }
        if !progress(driver.calls()) {
            return Err("ended".to_owned());
        }
    }
    Ok(())
}

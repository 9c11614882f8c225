//! A run: what has to stand before, the threads that make the load, and the time that is measured.
//!
//! With a rate, a unit of work's latency counts from when it was *due*, whether or not it could
//! begin then: a server that stalls is charged for every unit that had to wait for it, not only for
//! the one that it stalled on (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::driver::{Driver, Shared};
use crate::options::Options;
use crate::process::{self, Usage};
use crate::report::{Found, Report};
use crate::setup::{SETUP_MAX, set_up};

/// Is told the units of work done so far, and the part of the time that is over; the run ends when
/// it says false.
pub type Progress<'a> = &'a mut dyn FnMut(u64, f64) -> bool;

/// Runs what the options say.
pub fn run(options: &Options, progress: Progress<'_>) -> Result<Report, String> {
    let mut options = options.clone();
    options.conns = options.conns.max(1);
    if options.rate == 0.0 {
        options.rate = crate::kube::rate(&options);
    }
    if options.concurrency == 0 {
        options.concurrency = if options.rate > 0.0 { 1024 } else { 64 };
    }
    options.threads = options.threads.clamp(1, options.conns.min(options.concurrency));
    let epoch = Instant::now();
    let known = set_up(&options, epoch, progress)?;
    if options.scenario == "fill" {
        let (seconds, requests) = (epoch.elapsed().as_secs_f64(), options.keys as u64);
        let rate = requests as f64 / seconds;
        let server = match options.pid {
            0 => None,
            pid => Some(Usage { memory_bytes: process::memory_bytes(pid)?, ..Usage::default() }),
        };
        let options = Some(options);
        return Ok(Report { options, seconds, requests, rate, server, ..Report::default() });
    }
    let shared = Arc::new(Shared::default());
    let known = Arc::new(known);
    let mut threads = Vec::new();
    for at in 0..options.threads {
        let (options, shared, known) = (options.clone(), Arc::clone(&shared), Arc::clone(&known));
        let thread = thread::Builder::new().name(format!("load-{at}"));
        let work = move || Driver::new(&options, at, epoch, &known)?.run(&shared);
        threads.push(thread.spawn(work).map_err(|why| why.to_string())?);
    }
    let outcome = conduct(&options, &shared, &threads, progress);
    shared.stop.store(true, Ordering::SeqCst);
    let mut found = Found::default();
    for thread in threads {
        found.merge(thread.join().map_err(|_| "a thread of the load panicked".to_owned())??);
    }
    let Measured { seconds, own_cpu_s, server } = outcome?;
    let mut report = found.report(&options, seconds, own_cpu_s);
    report.server = server.map(|(cpu_s, memory_bytes)| Usage {
        cpu_us: cpu_s * 1e6 / report.requests.max(1) as f64,
        cpus: cpu_s / seconds,
        memory_bytes,
    });
    Ok(report)
}

type Thread = thread::JoinHandle<Result<Found, String>>;

/// What passed while the load was measured.
struct Measured {
    seconds: f64,
    own_cpu_s: f64,
    /// The server's processor time in seconds, and its memory in bytes.
    server: Option<(f64, u64)>,
}

/// Waits for all to be ready, warms up, measures.
fn conduct(
    options: &Options,
    shared: &Shared,
    threads: &[Thread],
    progress: Progress<'_>,
) -> Result<Measured, String> {
    let setup = Instant::now();
    let failed = || threads.iter().any(Thread::is_finished);
    while shared.ready.load(Ordering::SeqCst) < threads.len() as u64 {
        if failed() || setup.elapsed() > SETUP_MAX {
            return Err("the load could not be set up".to_owned());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let all = options.warmup_s + options.duration_s;
    let began = Instant::now();
    let mut ended = false;
    let mut wait = |seconds: f64| {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while !failed() && !ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(200)));
            let part = began.elapsed().as_secs_f64() / all;
            ended = !progress(shared.done.load(Ordering::Relaxed), part.min(1.0));
        }
    };
    let server_cpu_s = || match options.pid {
        0 => Ok(0.0),
        pid => process::cpu_s(pid),
    };
    wait(options.warmup_s);
    let (at, own_cpu_s, cpu_s) = (Instant::now(), own_cpu_s(), server_cpu_s()?);
    shared.measuring.store(true, Ordering::SeqCst);
    wait(options.duration_s);
    shared.measuring.store(false, Ordering::SeqCst);
    let seconds = at.elapsed().as_secs_f64();
    let server = match options.pid {
        0 => None,
        pid => Some((server_cpu_s()? - cpu_s, process::memory_bytes(pid)?)),
    };
    Ok(Measured { seconds, own_cpu_s: self::own_cpu_s() - own_cpu_s, server })
}

fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

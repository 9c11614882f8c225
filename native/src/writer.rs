//! A thread that writes and syncs files for the file journal, without the interpreter lock.
//!
//! A Python thread that has synced waits for that lock behind whatever the serving thread does; and
//! while it holds it, nothing is served. This one needs the lock for nothing.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::link::lock;

/// What to write: `parts`, one after the other, at `offset` of the file.
struct Job {
    path: PathBuf,
    offset: u64,
    parts: Vec<PyBackedBytes>,
}

/// What came of it: 0 or the error's number, and the seconds that write and sync took.
struct Done {
    errno: i32,
    write_s: f64,
    sync_s: f64,
    /// Let go by `take`, under the interpreter lock.
    _parts: Vec<PyBackedBytes>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    wanted: Condvar,
    done: Mutex<Vec<Done>>,
    signal: OwnedFd,
}

/// See the module.
#[pyclass(frozen, module = "jotd_native")]
pub struct SyncWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[pymethods]
impl SyncWriter {
    /// Starts the thread. Raises OSError.
    #[new]
    fn new() -> PyResult<SyncWriter> {
        let signal =
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wanted: Condvar::new(),
            done: Mutex::default(),
            signal,
        });
        let own = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("jotd-writer".to_owned()).spawn(move || own.run())?;
        Ok(SyncWriter { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The file descriptor that is readable when there is something to take.
    fn fileno(&self) -> i32 {
        self.shared.signal.as_raw_fd()
    }

    /// Writes `parts` at `offset` of the file and syncs its data; `take` tells how it went.
    fn submit(&self, path: PathBuf, offset: u64, parts: Vec<PyBackedBytes>) -> PyResult<()> {
        let mut state = lock(&self.shared.state);
        if state.stopping {
            return Err(PyRuntimeError::new_err("the writer is stopped"));
        }
        state.jobs.push_back(Job { path, offset, parts });
        drop(state);
        self.shared.wanted.notify_one();
        Ok(())
    }

    /// What is done since the last call, in order: 0 or an errno, seconds of write and of sync.
    fn take(&self) -> Vec<(i32, f64, f64)> {
        let mut count = [0; 8];
        // Empty if nothing is done: then there is nothing to read.
        let _ = rustix::io::read(&self.shared.signal, &mut count);
        let done = std::mem::take(&mut *lock(&self.shared.done));
        done.iter().map(|job| (job.errno, job.write_s, job.sync_s)).collect()
    }

    /// Does what was submitted, and ends the thread.
    fn stop(&self, py: Python<'_>) {
        lock(&self.shared.state).stopping = true;
        self.shared.wanted.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            py.detach(|| thread.join().ok());
        }
    }
}

impl Drop for SyncWriter {
    fn drop(&mut self) {
        // Not waited for: that might need the interpreter lock, which this thread may hold.
        lock(&self.shared.state).stopping = true;
        self.shared.wanted.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut open: Option<(PathBuf, File)> = None;
        while let Some(job) = self.next() {
            let began = Instant::now();
            let outcome = write(&mut open, &job).map(|()| Instant::now());
            let written = *outcome.as_ref().unwrap_or(&began);
            let outcome = outcome.and_then(|_| match &open {
                Some((_, file)) => file.sync_data(),
                None => Ok(()),
            });
            let done = Done {
                errno: outcome.map_or_else(|why| errno(&why), |()| 0),
                write_s: (written - began).as_secs_f64(),
                sync_s: written.elapsed().as_secs_f64(),
                _parts: job.parts,
            };
            lock(&self.done).push(done);
            // It can only fail if 2^64 - 1 signals were not read: then it is readable.
            let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
        }
    }

    /// The next job; None when all is done and no more will come.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.stopping {
                return None;
            }
            state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes all parts. The file stays open for the next job, which mostly has the same.
fn write(open: &mut Option<(PathBuf, File)>, job: &Job) -> io::Result<()> {
    if open.as_ref().is_none_or(|(path, _)| *path != job.path) {
        let file = OpenOptions::new().write(true).open(&job.path)?;
        *open = Some((job.path.clone(), file));
    }
    let Some((_, file)) = open else { return Ok(()) };
    let mut slices: Vec<IoSlice<'_>> = job.parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    let mut offset = job.offset;
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(&*file, rest, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

fn errno(why: &io::Error) -> i32 {
    why.raw_os_error().unwrap_or_else(|| Errno::IO.raw_os_error())
}

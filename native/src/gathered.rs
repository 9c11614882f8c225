//! A long answer as the objects that Python has its parts in.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use jotd_door::queue::Parts;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

use crate::link::lock;

/// How much is put together at once: a few HTTP/2 frames, and little enough to stay in the cache.
const TAKE_BYTES: usize = 64 << 10;

/// Python objects that are of no more use. They are let go under the interpreter lock.
pub type Spent = Arc<Mutex<Vec<Vec<PyBackedBytes>>>>;

/// See the module.
pub struct Gathered {
    /// As many lists as there were calls of `add`: one of a million would grow in long steps (R11).
    batches: VecDeque<Vec<PyBackedBytes>>,
    /// The first part of the first list that was not taken whole.
    at: usize,
    /// What was taken of it.
    taken: usize,
    left: usize,
    spent: Spent,
}

impl Gathered {
    pub fn new(spent: Spent) -> Gathered {
        Gathered { batches: VecDeque::new(), at: 0, taken: 0, left: 0, spent }
    }

    /// Adds bytes objects; how many bytes.
    pub fn add(&mut self, parts: &Bound<'_, PyList>) -> PyResult<usize> {
        let mut batch = Vec::with_capacity(parts.len());
        for part in parts {
            batch.push(PyBackedBytes::from(part.cast_into::<PyBytes>()?));
        }
        Ok(self.push(batch))
    }

    pub fn push(&mut self, batch: Vec<PyBackedBytes>) -> usize {
        let size = batch.iter().map(|part| part.len()).sum();
        self.left += size;
        self.batches.push_back(batch);
        size
    }

    /// The next bytes that lie together, at most `max` of them.
    fn next(&mut self, max: usize) -> Option<&[u8]> {
        while self.batches.front()?.get(self.at).is_none() {
            let spent = self.batches.pop_front()?;
            lock(&self.spent).push(spent);
            self.at = 0;
        }
        let part = self.batches.front()?.get(self.at)?;
        let (_, rest) = part.split_at_checked(self.taken)?;
        let piece = rest.get(..max).unwrap_or(rest);
        if piece.len() == rest.len() {
            self.at += 1;
            self.taken = 0;
        } else {
            self.taken += piece.len();
        }
        self.left -= piece.len();
        Some(piece)
    }
}

impl Parts for Gathered {
    fn left(&self) -> usize {
        self.left
    }

    fn take(&mut self, max: usize) -> Bytes {
        let size = max.min(self.left).min(TAKE_BYTES);
        let mut out = Vec::with_capacity(size);
        while out.len() < size
            && let Some(piece) = self.next(size - out.len())
        {
            out.extend_from_slice(piece);
        }
        Bytes::from(out)
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        // On whichever thread this is, sent or not.
        lock(&self.spent).extend(self.batches.drain(..));
    }
}

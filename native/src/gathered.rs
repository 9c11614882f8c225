//! A long answer as the objects that Python has its parts in.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

use bytes::Buf;
use jotd_door::data::Parts;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

use crate::link::lock;

/// Python objects that are of no more use. They are let go under the interpreter lock.
pub type Spent = Arc<Mutex<Vec<Vec<PyBackedBytes>>>>;

/// See the module. There are as many lists as there were calls of `add`: one of a million objects
/// would grow in long steps (R11).
pub struct Gathered {
    batches: VecDeque<Cursor>,
    left: usize,
    spent: Spent,
}

impl Gathered {
    pub fn new(spent: Spent) -> Gathered {
        Gathered { batches: VecDeque::new(), left: 0, spent }
    }

    /// Adds bytes objects; how many bytes.
    pub fn add(&mut self, parts: &Bound<'_, PyList>) -> PyResult<usize> {
        let mut batch = Vec::with_capacity(parts.len());
        for part in parts {
            batch.push(PyBackedBytes::from(part.cast_into::<PyBytes>()?));
        }
        Ok(self.push(batch))
    }

    pub fn push(&mut self, parts: Vec<PyBackedBytes>) -> usize {
        let left = parts.iter().map(|part| part.len()).sum();
        let batch = Arc::new(Batch { parts, spent: Arc::clone(&self.spent) });
        self.left += left;
        if left > 0 {
            self.batches.push_back(Cursor { batch, at: 0, taken: 0, left });
        }
        left
    }
}

impl Parts for Gathered {
    fn left(&self) -> usize {
        self.left
    }

    fn take(&mut self, max: usize) -> Box<dyn Buf> {
        let Some(front) = self.batches.front_mut() else { return Box::new(&[][..]) };
        let mut part = front.clone();
        part.left = part.left.min(max);
        front.advance(part.left);
        if front.left == 0 {
            self.batches.pop_front();
        }
        self.left -= part.left;
        Box::new(part)
    }
}

/// The objects of one list. Whoever is last to need them gives them back, on whichever thread.
struct Batch {
    parts: Vec<PyBackedBytes>,
    spent: Spent,
}

impl Drop for Batch {
    fn drop(&mut self) {
        lock(&self.spent).push(std::mem::take(&mut self.parts));
    }
}

/// Bytes of a batch, from some place on.
#[derive(Clone)]
struct Cursor {
    batch: Arc<Batch>,
    /// The first part that is not behind it.
    at: usize,
    /// What is behind it of that part.
    taken: usize,
    left: usize,
}

impl Cursor {
    /// The bytes by part; parts may be empty.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.left;
        let parts = self.batch.parts.get(self.at..).unwrap_or_default();
        parts.iter().enumerate().map_while(move |(at, part)| {
            if left == 0 {
                return None;
            }
            let from = if at == 0 { self.taken } else { 0 };
            let rest = part.get(from..).unwrap_or_default();
            let piece = rest.get(..left).unwrap_or(rest);
            left -= piece.len();
            Some(piece)
        })
    }
}

impl Buf for Cursor {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.pieces().find(|piece| !piece.is_empty()).unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces().filter(|piece| !piece.is_empty());
        slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, count: usize) {
        let mut count = count.min(self.left);
        self.left -= count;
        while let Some(part) = self.batch.parts.get(self.at) {
            let rest = part.len() - self.taken;
            if count < rest {
                self.taken += count;
                return;
            }
            count -= rest;
            self.at += 1;
            self.taken = 0;
        }
    }
}

//! What is sent: bytes that lie together, or parts of a long message where they are.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// A long message in parts. They are copied once, into what the socket is given.
pub trait Parts: Send {
    /// Bytes that were not taken.
    fn left(&self) -> usize;
    /// The next of them, at most `max`, at least one.
    fn take(&mut self, max: usize) -> Box<dyn Buf>;
}

/// A message that waits.
pub(crate) enum Out {
    Bytes(Bytes),
    Parts(Box<dyn Parts>),
}

impl Out {
    pub fn len(&self) -> usize {
        match self {
            Out::Bytes(bytes) => bytes.len(),
            Out::Parts(parts) => parts.left(),
        }
    }

    pub fn take(&mut self, max: usize) -> Data {
        match self {
            Out::Bytes(bytes) => Data::Bytes(bytes.split_to(max.min(bytes.len()))),
            Out::Parts(parts) => Data::Parts(parts.take(max)),
        }
    }
}

/// What h2 is handed.
pub(crate) enum Data {
    Bytes(Bytes),
    Parts(Box<dyn Buf>),
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        match self {
            Data::Bytes(bytes) => bytes.len(),
            Data::Parts(parts) => parts.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Data::Bytes(bytes) => bytes,
            Data::Parts(parts) => parts.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Data::Bytes(bytes) => bytes.chunks_vectored(slices),
            Data::Parts(parts) => parts.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Data::Bytes(bytes) => bytes.advance(count),
            Data::Parts(parts) => parts.advance(count),
        }
    }
}

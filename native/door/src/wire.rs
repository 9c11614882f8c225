//! What h2 reads from and writes to: a socket with all frames of a turn gathered into one write.
//!
//! h2 alone makes one system call for each DATA frame above 256 bytes; gathered, a batch of answers
//! costs one. Measured with 32 calls in flight on each of 8 connections and 1 KiB answers: 2.4 us
//! of CPU a call instead of 10.8.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::{self, Flood, Guard};
use crate::socket::Socket;
use crate::stats::Stats;
use crate::world::World;

/// With so much waiting for the socket no more is taken from h2.
const OUT_BYTES_MAX: usize = 256 << 10;
/// With so much gathered it is sent before the turn's end, so that the peer can begin.
const OUT_BYTES_SEND: usize = 64 << 10;
/// Reads in one turn; then other connections have theirs.
const READS_A_TURN: u32 = 4;
/// Buffers kept for the next turn, over all connections.
const SPARE_BUFFERS: usize = 16;
const SPARE_BYTES_MAX: usize = 512 << 10;

/// One connection's socket and buffers.
pub(crate) struct Wire {
    world: Rc<World>,
    socket: Socket,
    out: Vec<u8>,
    out_at: usize,
    /// Read, and not yet taken by h2.
    left: Vec<u8>,
    left_at: usize,
    reads: u32,
    failed: bool,
    /// The connection has calls.
    pub busy: bool,
    pub guard: Guard,
    pub flood: Option<Flood>,
    pub read_at_ms: u64,
    pub opened_at_ms: u64,
}

impl Wire {
    /// `left` was read from the socket already.
    pub fn new(world: Rc<World>, socket: Socket, mut left: Vec<u8>) -> Wire {
        let now_ms = world.now_ms();
        let mut wire = Wire {
            guard: Guard::new(&world.core.limits.rates, now_ms),
            world,
            socket,
            out: Vec::new(),
            out_at: 0,
            left: Vec::new(),
            left_at: 0,
            reads: 0,
            failed: false,
            busy: false,
            flood: None,
            read_at_ms: now_ms,
            opened_at_ms: now_ms,
        };
        if matches!(wire.socket, Socket::Unix(_)) {
            wire.guard.headers = Some(Vec::new());
        }
        wire.scan(&mut left);
        wire.left = left;
        wire
    }

    /// A new turn: it may read again.
    pub fn begin_turn(&mut self) {
        self.reads = 0;
    }

    fn scan(&mut self, data: &mut [u8]) {
        let now_ms = self.world.now_ms();
        self.read_at_ms = now_ms;
        let before = self.guard.frames;
        if let Err(flood) = self.guard.scan(data, now_ms, self.busy) {
            self.flood.get_or_insert(flood);
        }
        for block in self.guard.headers.iter_mut().flat_map(|spans| spans.drain(..)) {
            guard::mend_authority(data.get_mut(block).unwrap_or_default());
        }
        let stats = &self.world.core.stats;
        Stats::add(&stats.frames_total, self.guard.frames - before);
        Stats::add(&stats.received_bytes_total, data.len() as u64);
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left_at < self.left.len() {
            let rest = self.left.get(self.left_at..).unwrap_or_default();
            let part = rest.len().min(buf.remaining());
            buf.put_slice(rest.get(..part).unwrap_or_default());
            self.left_at += part;
            if self.left_at >= self.left.len() {
                self.left_at = 0;
                give_back(&self.world, &mut self.left);
            }
            return Poll::Ready(Ok(()));
        }
        if self.flood.is_some() {
            // The turn's end will see it.
            return Poll::Pending;
        }
        if self.world.pause_if_full(cx) {
            return Poll::Pending;
        }
        if self.reads >= READS_A_TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.reads += 1;
        let world = Rc::clone(&self.world);
        let mut scratch = world.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.socket).poll_read(cx, &mut into) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                Stats::count(&world.core.stats.reads_total);
                let data = into.filled_mut();
                self.scan(data);
                let (now, later) = data.split_at_checked(buf.remaining()).unwrap_or((data, &[]));
                buf.put_slice(now);
                if !later.is_empty() {
                    if self.left.capacity() == 0 {
                        self.left = world.spare();
                    }
                    self.left.extend_from_slice(later);
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Takes bytes unless too many wait.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent() >= OUT_BYTES_SEND {
            self.flush(cx);
        }
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.unsent() >= OUT_BYTES_MAX {
            // `flush` has asked to be woken.
            return Poll::Pending;
        }
        if self.out.capacity() == 0 {
            self.out = self.world.spare();
        }
        Poll::Ready(Ok(()))
    }

    /// Puts bytes behind everything that h2 wrote, which is always whole frames.
    pub fn append(&mut self, data: &[u8]) {
        self.out.extend_from_slice(data);
    }

    /// Bytes that the socket has not taken.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// True once the peer's kernel, or ours, has everything that h2 wrote.
    pub fn is_sent(&self) -> bool {
        self.unsent() == 0 && !self.socket.keeps_back()
    }

    /// True while the socket does not take what h2 has written; the task is woken when it does.
    pub fn is_congested(&mut self, cx: &mut Context<'_>) -> bool {
        if self.unsent() >= OUT_BYTES_MAX {
            // One frame can be that long, so that nothing was tried yet.
            self.flush(cx);
        }
        self.unsent() >= OUT_BYTES_MAX
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self, cx: &mut Context<'_>) {
        while !self.failed && self.out_at < self.out.len() {
            let rest = self.out.get(self.out_at..).unwrap_or_default();
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    let stats = &self.world.core.stats;
                    Stats::count(&stats.writes_total);
                    Stats::add(&stats.sent_bytes_total, n as u64);
                    self.out_at += n;
                }
                Poll::Ready(_) => self.failed = true,
                Poll::Pending => {
                    // Else a peer that takes a little now and then would have it grow.
                    if self.out_at >= OUT_BYTES_MAX {
                        self.out.drain(..self.out_at);
                        self.out_at = 0;
                    }
                    return;
                }
            }
        }
        // TLS may have taken more than its socket: in this turn or in an earlier one.
        if self.socket.keeps_back()
            && let Poll::Ready(Err(_)) = Pin::new(&mut self.socket).poll_flush(cx)
        {
            self.failed = true;
        }
        self.out_at = 0;
        give_back(&self.world, &mut self.out);
    }

    /// True once writing has failed.
    pub fn is_broken(&self) -> bool {
        self.failed
    }

    /// The socket, for its last words.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }
}

impl World {
    /// An empty buffer, used before if there is one.
    fn spare(&self) -> Vec<u8> {
        self.spares.borrow_mut().pop().unwrap_or_default()
    }
}

/// Keeps an empty buffer's memory for whoever needs one next: idle connections hold none.
fn give_back(world: &World, buffer: &mut Vec<u8>) {
    let mut buffer = std::mem::take(buffer);
    buffer.clear();
    let mut spares = world.spares.borrow_mut();
    if spares.len() < SPARE_BUFFERS && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
        spares.push(buffer);
    }
}

/// The wire as h2 holds it.
pub(crate) struct WireIo(pub Rc<RefCell<Wire>>);

impl AsyncRead for WireIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        std::task::ready!(wire.poll_room(cx))?;
        wire.out.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        std::task::ready!(wire.poll_room(cx))?;
        let mut taken = 0;
        for part in parts {
            wire.out.extend_from_slice(part);
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The turn's end flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection's task closes the socket.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

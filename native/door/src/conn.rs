//! One connection's task: greeting, HTTP/2 turns, last words.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection, Handshake};
use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::data::Data;
use crate::guard::{ENHANCE_YOUR_CALM, Flood};
use crate::http1;
use crate::options::Limits;
use crate::queue::Peer;
use crate::socket::Socket;
use crate::stats::Stats;
use crate::tls;
use crate::wire::{Wire, WireIo};
use crate::world::{Conn, World};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a stream, and a connection, may send before it is told to go on.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Streams that a client opened and reset within one turn; its rate is the guard's affair.
const RESET_UNSEEN_MAX: usize = 4096;
/// What small DATA frames may cost before they are taken; one turn brings at most 256 KiB.
const SMALL_FRAMES_BUDGET: usize = 16 << 20;
/// h2 refuses headers of this many times our own limit, with an HTTP status. Between the two they
/// are read (one block at a time on each connection) and refused with a gRPC status.
const HEADERS_READ_FACTOR: u32 = 16;
/// How long a connection that is over may take to say so.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Serves a connection from its first byte on.
pub(crate) async fn serve(
    world: Rc<World>,
    socket: Socket,
    address: String,
    acceptor: Option<TlsAcceptor>,
) {
    let stats = &world.core.stats;
    let greeting = greet(socket, address, acceptor);
    let (socket, peer, left) = match timeout(world.core.limits.handshake_max, greeting).await {
        Err(_) => return Stats::count(&stats.handshake_timeouts_total),
        Ok(Err(_)) => return Stats::count(&stats.handshake_failures_total),
        Ok(Ok(None)) => return,
        Ok(Ok(Some(greeted))) => greeted,
    };
    world.touch_clock();
    if left == PREFACE {
        let wire = Wire::new(Rc::clone(&world), socket, left);
        let conn = Rc::new(Conn::new(wire, peer));
        let slot = world.conns.borrow_mut().insert(Rc::clone(&conn));
        let io = WireIo(Rc::clone(&conn.wire));
        let state = State::Greeting(Box::new(builder(&world.core.limits).handshake(io)));
        Turns {
            world: Rc::clone(&world),
            conn: Rc::clone(&conn),
            state,
            ping: None,
            pong_due: false,
            leaving: false,
        }
        .await;
        world.abandon(&conn);
        world.publish();
        world.parting.set(world.parting.get() + 1);
        world.conns.borrow_mut().try_remove(slot);
        let _ = timeout(LAST_WORDS_MAX, last_words(&world, &conn)).await;
        world.parting.set(world.parting.get() - 1);
    } else {
        http1::serve(&world, socket, peer, left).await;
    }
}

/// TLS, and the first bytes: HTTP/2's preface, or something else. None: the client left.
async fn greet(
    mut socket: Socket,
    address: String,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<Option<(Socket, Arc<Peer>, Vec<u8>)>> {
    let mut peer = Peer { address, ..Peer::default() };
    if let Some(acceptor) = acceptor {
        let stream = acceptor.accept(socket).await?;
        tls::names(&stream, &mut peer);
        socket = Socket::Tls(Box::new(stream));
    }
    let mut left = Vec::with_capacity(PREFACE.len());
    loop {
        let mut byte = [0; PREFACE.len()];
        let room = byte.get_mut(..PREFACE.len() - left.len()).unwrap_or_default();
        let n = socket.read(room).await?;
        if n == 0 {
            return if left.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        left.extend_from_slice(byte.get(..n).unwrap_or_default());
        if left.len() == PREFACE.len() || !PREFACE.starts_with(&left) {
            return Ok(Some((socket, Arc::new(peer), left)));
        }
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.header_bytes_max.saturating_mul(HEADERS_READ_FACTOR))
        .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

type H2 = Connection<WireIo, Data>;

enum State {
    Greeting(Box<Handshake<WireIo, Data>>),
    Open(Box<H2>),
    Over,
}

/// Why a connection ends.
enum Ended {
    /// The peer closed it, or it was drained.
    Closed,
    Error(h2::Error),
    Flood(Flood),
    Killed,
}

/// The life of an HTTP/2 connection: what came in since the last turn is read, what can be
/// answered is written, all at once.
struct Turns {
    world: Rc<World>,
    conn: Rc<Conn>,
    state: State,
    ping: Option<PingPong>,
    /// A ping was sent, and its answer not seen.
    pong_due: bool,
    /// GOAWAY was sent.
    leaving: bool,
}

impl Future for Turns {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.world.touch_clock();
        this.conn.ready.begin_turn(cx.waker());
        {
            let mut wire = this.conn.wire.borrow_mut();
            wire.begin_turn();
            wire.busy = !this.conn.ids.borrow().is_empty();
        }
        let ended = this.turn(cx);
        this.conn.wire.borrow_mut().flush(cx);
        this.conn.ready.end_turn();
        this.world.publish();
        match ended {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ended) => {
                this.close(ended);
                Poll::Ready(())
            }
        }
    }
}

impl Turns {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.conn.kill.get() {
            return Poll::Ready(Ended::Killed);
        }
        if let State::Greeting(handshake) = &mut self.state {
            match Pin::new(handshake.as_mut()).poll(cx) {
                Poll::Ready(Ok(mut h2)) => {
                    self.ping = h2.ping_pong();
                    self.state = State::Open(Box::new(h2));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Ended::Error(error)),
                Poll::Pending => {
                    return match self.conn.wire.borrow().flood {
                        Some(flood) => Poll::Ready(Ended::Flood(flood)),
                        None => Poll::Pending,
                    };
                }
            }
        }
        let State::Open(h2) = &mut self.state else { return Poll::Ready(Ended::Closed) };
        if self.world.draining.get() && !self.leaving {
            self.leaving = true;
            h2.graceful_shutdown();
        }
        if self.conn.ping.replace(false)
            && let Some(ping) = &mut self.ping
            && ping.send_ping(Ping::opaque()).is_ok()
        {
            self.pong_due = true;
            self.conn.pinged_at_ms.set(Some(self.world.now_ms()));
        }
        loop {
            let ended = accept_all(&self.world, &self.conn, h2, cx);
            let (reset, flood) = {
                let mut wire = self.conn.wire.borrow_mut();
                (std::mem::take(&mut wire.guard.reset), wire.flood)
            };
            self.world.reset(&self.conn, &reset);
            if let Some(flood) = flood {
                return Poll::Ready(Ended::Flood(flood));
            }
            if let Some(ended) = ended {
                return Poll::Ready(ended);
            }
            if !self.conn.wire.borrow_mut().is_congested(cx) {
                self.conn.handed.set(0);
                for key in self.conn.blocked.take() {
                    self.conn.ready.add(key);
                }
            }
            let ready = self.conn.ready.take();
            if ready.is_empty() {
                break;
            }
            for key in ready {
                self.world.go_on(key);
            }
        }
        if self.conn.wire.borrow().is_broken() {
            return Poll::Ready(Ended::Killed);
        }
        // Even if other frames were a sign of life before: h2 pings no more until it was asked for.
        if self.pong_due
            && let Some(ping) = &mut self.ping
            && let Poll::Ready(Ok(_)) = ping.poll_pong(cx)
        {
            self.pong_due = false;
            self.conn.pinged_at_ms.set(None);
        }
        Poll::Pending
    }

    fn close(&mut self, ended: Ended) {
        let stats = &self.world.core.stats;
        match ended {
            Ended::Closed => {}
            Ended::Killed => Stats::count(&stats.connection_errors_total),
            Ended::Error(error) if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) => {
                Stats::count(&stats.calm_total);
            }
            Ended::Error(_) => Stats::count(&stats.connection_errors_total),
            Ended::Flood(flood) => {
                Stats::count(match flood {
                    Flood::Resets => &stats.reset_floods_total,
                    Flood::Pings => &stats.ping_floods_total,
                    Flood::Settings => &stats.settings_floods_total,
                    Flood::Idle => &stats.idle_floods_total,
                });
                let mut wire = self.conn.wire.borrow_mut();
                let last = wire.guard.last_stream;
                wire.append(&goaway(last, ENHANCE_YOUR_CALM, flood.text()));
            }
        }
        self.state = State::Over;
    }
}

/// Reads, and takes in every request that is there. Some(why) when the connection is over.
fn accept_all(world: &World, conn: &Rc<Conn>, h2: &mut H2, cx: &mut Context<'_>) -> Option<Ended> {
    loop {
        if conn.unsent.get() > world.core.limits.unsent_bytes_max {
            // It takes no answers, so it gets no more calls served; its windows still open.
            Stats::count(&world.core.stats.unsent_full_total);
            return match h2.poll_closed(cx) {
                Poll::Pending => None,
                Poll::Ready(Ok(())) => Some(Ended::Closed),
                Poll::Ready(Err(error)) => Some(Ended::Error(error)),
            };
        }
        match h2.poll_accept(cx) {
            Poll::Pending => return None,
            Poll::Ready(None) => return Some(Ended::Closed),
            Poll::Ready(Some(Err(error))) => return Some(Ended::Error(error)),
            Poll::Ready(Some(Ok((request, respond)))) => world.accept(conn, request, respond),
        }
    }
}

/// A GOAWAY frame; h2 sends none with debug data.
fn goaway(last_stream: u32, reason: u32, text: &str) -> Vec<u8> {
    let [_, a, b, c] = (8 + text.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, 7, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&reason.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Sends what is left, says that it was all, and waits until the peer has read it: closing a
/// socket on unread data would take our own last words from the peer.
async fn last_words(world: &World, conn: &Conn) {
    let wire: &RefCell<Wire> = &conn.wire;
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        wire.flush(cx);
        if wire.is_sent() || wire.is_broken() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if wire.borrow().is_broken() {
        return;
    }
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        Pin::new(wire.socket()).poll_shutdown(cx).map(drop)
    })
    .await;
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        let mut scratch = world.scratch.borrow_mut();
        // A few reads, then others have their turn; what comes is of no interest.
        for _ in 0..4 {
            let mut into = ReadBuf::new(&mut scratch);
            match Pin::new(wire.socket()).poll_read(cx, &mut into) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

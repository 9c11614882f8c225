//! Live calls and streams: from a request's headers to the last byte of its answer.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, request};
use tokio::sync::oneshot;

use crate::data::{Data, Out};
use crate::grpc::{self, Decoder, Status, code};
use crate::options::Kind;
use crate::queue::{Command, Event, HttpAnswer, HttpRequest, InCall, Key, Message, Meta, Room};
use crate::stats::Stats;
use crate::world::{Conn, World};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
static GRPC_CONTENT: HeaderValue = HeaderValue::from_static("application/grpc");
static ZERO: HeaderValue = HeaderValue::from_static("0");

/// Bytes handed to h2 in one turn of a connection; what is beyond waits where it is counted.
const HANDED_BYTES_MAX: usize = 1 << 20;

/// One live call or stream.
pub(crate) struct Entry {
    generation: u32,
    conn: Option<Rc<Conn>>,
    stream: u32,
    meta: Arc<Meta>,
    timed: bool,
    respond: Option<SendResponse<Data>>,
    send: Option<SendStream<Data>>,
    /// None of them is empty.
    out: VecDeque<Out>,
    /// Bytes in `out`.
    queued: usize,
    /// What comes behind them.
    end: Option<End>,
    reading: Option<Box<Reading>>,
    /// Set for streams.
    room: Option<Arc<Room>>,
    waker: Option<Waker>,
    http1: Option<oneshot::Sender<HttpAnswer>>,
}

enum End {
    Grpc(Status),
    Plain,
}

/// A request that is not all there.
struct Reading {
    body: RecvStream,
    decoder: Decoder,
    /// Bytes of it that count as held.
    held: usize,
    what: What,
}

impl Drop for Reading {
    /// Whatever the service has not taken: it never will, but the stream may stay open for long, and
    /// its other ones share the connection's window.
    fn drop(&mut self) {
        // Of the others everything was released when it was read.
        if matches!(self.what, What::BidiStream { .. }) {
            let window = self.body.flow_control();
            let used = window.used_capacity();
            let _ = window.release_capacity(used);
        }
    }
}

enum What {
    Unary,
    ServerStream {
        /// Handed over when the client has said that it was all, as in grpc-go.
        request: Option<Bytes>,
    },
    BidiStream {
        /// There was no room to answer into, so the client is not read from.
        paused: bool,
        /// The client has said everything. The body stays, for the credit of what the service has
        /// not taken: without, one client's streams could hold more than its connection's window.
        over: bool,
    },
    Http {
        head: Box<request::Parts>,
        collected: BytesMut,
    },
}

/// What became of reading.
enum Read {
    /// More will come.
    Waiting,
    /// A unary request is complete.
    Call(Bytes),
    /// The one request of a stream is complete.
    Request(Bytes),
    /// An HTTP request is complete.
    Http(Box<HttpRequest>),
    /// The client has said everything.
    HalfClosed,
    /// The request cannot be served.
    Refused(Status),
    /// There is too much of unfinished requests.
    NoRoom,
    /// It is too long for HTTP.
    TooLong,
    /// The stream is gone.
    Gone,
}

/// What became of sending.
#[derive(PartialEq, Eq)]
enum Sent {
    /// There is more, or will be.
    Waiting,
    /// That was all.
    Done,
    /// The stream is gone.
    Gone,
}

fn key_of(generation: u32, index: usize) -> Key {
    u64::from(generation) << 32 | index as u64
}

fn index_of(key: Key) -> usize {
    (key & 0xffff_ffff) as usize
}

fn status_headers(status: &Status, headers: &mut HeaderMap) {
    let number = match status.code {
        code::OK => ZERO.clone(),
        other => HeaderValue::from(u16::from(other)),
    };
    headers.insert(&GRPC_STATUS, number);
    if !status.message.is_empty()
        && let Ok(text) = HeaderValue::from_bytes(&grpc::percent_encode(&status.message))
    {
        headers.insert(&GRPC_MESSAGE, text);
    }
}

/// The size of headers as HTTP/2 counts it.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

fn grpc_response() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT.clone());
    response
}

/// A response that is nothing but a status.
fn status_response(status: &Status) -> Response<()> {
    let mut response = grpc_response();
    status_headers(status, response.headers_mut());
    response
}

impl World {
    // -- from the client -------------------------------------------------------------------

    /// A request's headers are there.
    pub fn accept(
        &self,
        conn: &Rc<Conn>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Data>,
    ) {
        let stream = respond.stream_id().as_u32();
        let (head, body) = request.into_parts();
        let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !content_type.is_some_and(grpc::is_grpc) {
            let meta = self.meta(conn, 0, HeaderMap::new());
            let what = What::Http { head: Box::new(head), collected: BytesMut::new() };
            self.open(conn, stream, meta, respond, body, what, None);
            return;
        }
        let timeout = match self.check(&head) {
            Ok(timeout) => timeout,
            Err((http, status)) => {
                Stats::count(&self.core.stats.malformed_total);
                let mut response = status_response(&status);
                *response.status_mut() = http;
                // A failure means that the stream is gone.
                let _ = respond.send_response(response, true);
                return;
            }
        };
        // With its query, if it has one: gRPC knows of none.
        let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let Some(&(method, kind)) = self.methods.get(path) else {
            let path = path.to_owned();
            let meta = self.meta(conn, 0, HeaderMap::new());
            let key = self.insert(conn, stream, meta, respond, timeout);
            self.event(Event::Unknown { key, path });
            return;
        };
        let meta = self.meta(conn, method, head.headers);
        let what = match kind {
            Kind::Unary => What::Unary,
            Kind::ServerStream => What::ServerStream { request: None },
            Kind::BidiStream => What::BidiStream { paused: false, over: false },
        };
        self.open(conn, stream, meta, respond, body, what, timeout);
    }

    /// What grpc-go checks of the headers: the deadline in ms from now, or how it is refused.
    fn check(&self, head: &request::Parts) -> Result<Option<u64>, (StatusCode, Status)> {
        let limit = self.core.limits.header_bytes_max as usize;
        let size = header_bytes(&head.headers);
        if size > limit {
            let text = format!("received metadata size exceeds hard limit ({size} vs. {limit})");
            return Err((StatusCode::OK, Status::new(code::RESOURCE_EXHAUSTED, text)));
        }
        if head.method != http::Method::POST {
            let text = format!(
                "Received a HEADERS frame with :method {:?} which should be POST",
                head.method.as_str()
            );
            return Err((StatusCode::METHOD_NOT_ALLOWED, Status::new(code::INTERNAL, text)));
        }
        let timeout = match head.headers.get(&GRPC_TIMEOUT) {
            None => None,
            Some(value) => match grpc::timeout(value.as_bytes()) {
                Ok(timeout) => Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
                Err(why) => {
                    let text = format!("malformed grpc-timeout: {why}");
                    return Err((StatusCode::BAD_REQUEST, Status::new(code::INTERNAL, text)));
                }
            },
        };
        if let Some(encoding) = head.headers.get(&GRPC_ENCODING)
            && !matches!(encoding.as_bytes(), b"identity" | b"")
        {
            let name = String::from_utf8_lossy(encoding.as_bytes());
            let text = format!("grpc: Decompressor is not installed for grpc-encoding {name:?}");
            return Err((StatusCode::OK, Status::new(code::UNIMPLEMENTED, text)));
        }
        Ok(timeout)
    }

    fn meta(&self, conn: &Conn, method: u16, headers: HeaderMap) -> Arc<Meta> {
        Arc::new(Meta {
            method,
            peer: Arc::clone(&conn.peer),
            headers,
            cancelled: AtomicBool::new(false),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        conn: &Rc<Conn>,
        stream: u32,
        meta: Arc<Meta>,
        respond: SendResponse<Data>,
        body: RecvStream,
        what: What,
        timeout_ms: Option<u64>,
    ) {
        let is_stream = matches!(what, What::ServerStream { .. } | What::BidiStream { .. });
        let key = self.insert(conn, stream, Arc::clone(&meta), respond, timeout_ms);
        if let Some(entry) = self.live.borrow_mut().get_mut(index_of(key)) {
            let decoder = Decoder::default();
            entry.reading = Some(Box::new(Reading { body, decoder, held: 0, what }));
            if is_stream {
                Stats::count(&self.core.stats.streams_total);
                let room = Arc::new(Room::new(self.core.limits.room_bytes));
                entry.room = Some(Arc::clone(&room));
                self.event(Event::Opened { key, meta, room });
            }
        }
        self.read(key);
    }

    fn insert(
        &self,
        conn: &Rc<Conn>,
        stream: u32,
        meta: Arc<Meta>,
        respond: SendResponse<Data>,
        timeout_ms: Option<u64>,
    ) -> Key {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let index = self.live.borrow_mut().insert(Entry {
            generation,
            conn: Some(Rc::clone(conn)),
            stream,
            meta,
            timed: timeout_ms.is_some(),
            respond: Some(respond),
            send: None,
            out: VecDeque::new(),
            queued: 0,
            end: None,
            reading: None,
            room: None,
            waker: None,
            http1: None,
        });
        let key = key_of(generation, index);
        if let Some(timeout_ms) = timeout_ms {
            // Up to the next tick, so that it is never early.
            let due = World::tick_of(self.now_ms().saturating_add(timeout_ms)).saturating_add(1);
            let mut wheel = self.wheel.borrow_mut();
            if wheel.is_empty() {
                self.deadline_set.notify_one();
            }
            wheel.insert(index as u32, key, due);
        }
        conn.ids.borrow_mut().insert(stream, key);
        Stats::add(&self.core.stats.live_open, 1);
        key
    }

    /// An HTTP/1 request, answered through `answer`.
    pub fn http1(&self, request: Box<HttpRequest>, answer: oneshot::Sender<HttpAnswer>) -> Key {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let index = self.live.borrow_mut().insert(Entry {
            generation,
            conn: None,
            stream: 0,
            meta: Arc::new(Meta {
                method: 0,
                peer: Arc::clone(&request.peer),
                headers: HeaderMap::new(),
                cancelled: AtomicBool::new(false),
            }),
            timed: false,
            respond: None,
            send: None,
            out: VecDeque::new(),
            queued: 0,
            end: None,
            reading: None,
            room: None,
            waker: None,
            http1: Some(answer),
        });
        let key = key_of(generation, index);
        Stats::add(&self.core.stats.live_open, 1);
        Stats::count(&self.core.stats.http_total);
        self.event(Event::Http { key, request });
        key
    }

    /// Reads what there is of a request.
    fn read(&self, key: Key) {
        let outcome = {
            let mut live = self.live.borrow_mut();
            let Some(entry) = live.get_mut(index_of(key)) else { return };
            let outcome = self.read_entry(key, entry);
            if !matches!(outcome, Read::Waiting | Read::HalfClosed)
                && let Some(reading) = entry.reading.take()
            {
                self.held.set(self.held.get() - reading.held);
            }
            outcome
        };
        match outcome {
            Read::Waiting => {}
            Read::Call(request) => {
                let live = self.live.borrow();
                if let Some(entry) = live.get(index_of(key)) {
                    Stats::count(&self.core.stats.calls_total);
                    let meta = Arc::clone(&entry.meta);
                    self.calls.borrow_mut().push(InCall { key, meta, request });
                }
            }
            Read::Request(message) => {
                self.event(Event::Messages { key, messages: vec![message], credit: 0 });
                self.event(Event::HalfClosed { key });
            }
            Read::Http(request) => {
                Stats::count(&self.core.stats.http_total);
                self.event(Event::Http { key, request });
            }
            Read::HalfClosed => self.event(Event::HalfClosed { key }),
            Read::Refused(status) => {
                let stats = &self.core.stats;
                Stats::count(if status.code == code::RESOURCE_EXHAUSTED {
                    &stats.oversize_total
                } else {
                    &stats.malformed_total
                });
                self.end(key, End::Grpc(status));
            }
            Read::NoRoom => {
                Stats::count(&self.core.stats.held_refused_total);
                let text = "etcdserver: too many requests";
                self.end(key, End::Grpc(Status::fixed(code::RESOURCE_EXHAUSTED, text)));
            }
            Read::TooLong => {
                let headers = vec![];
                let answer = HttpAnswer { status: 413, headers, body: Bytes::new(), bare: false };
                self.answer_http(key, answer);
            }
            Read::Gone => self.cancel(key),
        }
    }

    fn read_entry(&self, key: Key, entry: &mut Entry) -> Read {
        let limit = self.core.limits.request_bytes_max;
        let Entry { reading, room, waker, conn, .. } = entry;
        let (Some(reading), Some(conn)) = (reading.as_deref_mut(), conn.as_ref()) else {
            return Read::Waiting;
        };
        let Reading { body, decoder, held, what } = reading;
        let mut messages = Vec::new();
        loop {
            if let What::BidiStream { paused, over } = what {
                *paused = !*over && room.as_ref().is_some_and(|room| room.is_full());
                if *paused || *over {
                    return Read::Waiting;
                }
            }
            // Most requests came in one piece, and need no waker of their own.
            let polled = match waker {
                None => body.poll_data(&mut Context::from_waker(Waker::noop())),
                Some(waker) => body.poll_data(&mut Context::from_waker(waker)),
            };
            let data = match polled {
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(Some(Err(_))) => return Read::Gone,
                Poll::Ready(None) => return ended(decoder, what, conn),
                Poll::Pending if waker.is_none() => {
                    *waker = Some(conn.ready.waker(key));
                    continue;
                }
                Poll::Pending => return Read::Waiting,
            };
            let came = data.len();
            if let What::Http { collected, .. } = what {
                let _ = body.flow_control().release_capacity(came);
                collected.extend_from_slice(&data);
                if collected.len() > limit {
                    return Read::TooLong;
                }
                if !self.hold(held, collected.len()) {
                    return Read::TooLong;
                }
                continue;
            }
            let pushed = decoder.push(data, limit, &mut messages);
            if matches!(what, What::Unary)
                && let Some(message) = messages.drain(..).next()
            {
                // grpc-go looks at nothing behind the first message.
                let _ = body.flow_control().release_capacity(came);
                return Read::Call(message);
            }
            if let Err(status) = pushed {
                return Read::Refused(status);
            }
            let mut kept = decoder.held_bytes();
            if let What::ServerStream { request } = what {
                for message in messages.drain(..) {
                    if request.replace(message).is_some() {
                        return Read::Refused(grpc::MANY_REQUESTS);
                    }
                }
                kept += request.as_ref().map_or(0, Bytes::len);
            }
            if !self.hold(held, kept) {
                return Read::NoRoom;
            }
            if messages.is_empty() {
                let _ = body.flow_control().release_capacity(came);
            } else {
                let messages = std::mem::take(&mut messages);
                self.event(Event::Messages { key, messages, credit: came });
            }
        }
    }

    /// Notes that a request holds `now` bytes; false if all of them together hold too much.
    fn hold(&self, held: &mut usize, now: usize) -> bool {
        let all = self.held.get() - *held + now;
        let grown = now > *held;
        self.held.set(all);
        *held = now;
        !grown || all <= self.core.limits.held_bytes_max
    }

    /// The client has reset streams.
    pub fn reset(&self, conn: &Conn, streams: &[u32]) {
        for stream in streams {
            let key = conn.ids.borrow().get(stream).copied();
            if let Some(key) = key {
                Stats::count(&self.core.stats.cancelled_total);
                self.cancel(key);
            }
        }
    }

    /// The connection is over.
    pub fn abandon(&self, conn: &Conn) {
        let keys: Vec<Key> = conn.ids.borrow().values().copied().collect();
        for key in keys {
            self.cancel(key);
        }
    }

    /// Nobody waits for this any more.
    pub fn cancel(&self, key: Key) {
        if let Some(entry) = self.remove(key) {
            entry.meta.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Deadlines up to now.
    pub fn expire(&self) {
        let mut expired = Vec::new();
        self.wheel.borrow_mut().advance(World::tick_of(self.now_ms()), &mut expired);
        for key in expired {
            let mut live = self.live.borrow_mut();
            let Some(entry) = find(&mut live, key) else { continue };
            entry.timed = false;
            entry.meta.cancelled.store(true, Ordering::Relaxed);
            Stats::count(&self.core.stats.deadlines_total);
            if entry.end.is_some() {
                // Its answer is on the way, and nobody waits for it: the rest is not worth sending.
                drop(live);
                self.cancel(key);
                continue;
            }
            self.forget_queue(entry);
            drop(live);
            self.end(key, End::Grpc(grpc::DEADLINE));
        }
    }

    /// A call can go on: there is more of its request, or a window has opened for its answer.
    pub fn go_on(&self, key: Key) {
        if !self.is_live(key) {
            return;
        }
        self.pump(key);
        if self.is_live(key) {
            self.read(key);
        }
    }

    fn is_live(&self, key: Key) -> bool {
        let live = self.live.borrow();
        live.get(index_of(key)).is_some_and(|e| key_of(e.generation, index_of(key)) == key)
    }

    /// Takes an entry out of every table. A stream's service is told.
    fn remove(&self, key: Key) -> Option<Entry> {
        if !self.is_live(key) {
            return None;
        }
        let index = index_of(key);
        let mut entry = self.live.borrow_mut().try_remove(index)?;
        if entry.timed {
            self.wheel.borrow_mut().remove(index as u32);
        }
        if let Some(conn) = &entry.conn {
            conn.ids.borrow_mut().remove(&entry.stream);
        }
        self.forget_queue(&mut entry);
        if let Some(reading) = &entry.reading {
            self.held.set(self.held.get() - reading.held);
        }
        if entry.room.is_some() {
            self.event(Event::Closed { key });
        }
        let stats = &self.core.stats;
        stats.live_open.store(self.live.borrow().len() as u64, Ordering::Relaxed);
        Some(entry)
    }

    fn forget_queue(&self, entry: &mut Entry) {
        if let Some(conn) = &entry.conn {
            conn.unsent.set(conn.unsent.get() - entry.queued);
        }
        entry.queued = 0;
        entry.out.clear();
    }

    // -- to the client ---------------------------------------------------------------------

    /// Does what Python wants. `Drain` and `Stop` are the caller's.
    pub fn execute(&self, command: Command) {
        match command {
            Command::Answer(key, message) => self.answer(key, message),
            Command::AnswerParts(key, parts) => {
                if self.queue_plain(key, Out::Parts(parts)) {
                    self.end(key, End::Grpc(Status::OK));
                }
            }
            Command::Fail(key, status) => self.end(key, End::Grpc(status)),
            Command::Send(key, message) => {
                if self.queue(key, message) {
                    self.pump(key);
                }
            }
            Command::Close(key, status) => self.end(key, End::Grpc(status)),
            Command::Taken(key, bytes) => self.taken(key, bytes),
            Command::Http(key, answer) => self.answer_http(key, *answer),
            Command::Drain | Command::Stop => {}
        }
    }

    fn answer(&self, key: Key, message: Message) {
        {
            let mut live = self.live.borrow_mut();
            let Some(entry) = find(&mut live, key) else { return };
            if entry.end.is_some() {
                return;
            }
            // The usual case: all of it goes at once, and nothing need be remembered.
            if message.framed
                && let Some(conn) = &entry.conn
                && conn.handed.get() < HANDED_BYTES_MAX
                && entry.respond.is_some()
                && entry.out.is_empty()
            {
                match send_headers(entry) {
                    None => {}
                    Some(send) => {
                        let size = message.bytes.len();
                        send.reserve_capacity(size);
                        if send.capacity() >= size {
                            let mut trailers = HeaderMap::with_capacity(1);
                            trailers.insert(&GRPC_STATUS, ZERO.clone());
                            // A failure means that the stream is gone: nothing is left to do.
                            let _ = send
                                .send_data(Data::Bytes(message.bytes), false)
                                .and_then(|()| send.send_trailers(trailers));
                            if let Some(conn) = &entry.conn {
                                conn.handed.set(conn.handed.get() + size);
                                conn.wire.borrow_mut().guard.sent();
                            }
                            drop(live);
                            self.remove(key);
                            return;
                        }
                    }
                }
            }
        }
        if self.queue(key, message) {
            self.end(key, End::Grpc(Status::OK));
        }
    }

    /// Puts a message into the queue of a call. False if there is no such call.
    fn queue(&self, key: Key, message: Message) -> bool {
        let Message { bytes, framed } = message;
        let bytes = Out::Bytes(bytes);
        if framed { self.enqueue(key, [bytes]) } else { self.queue_plain(key, bytes) }
    }

    /// The same with a message that has no prefix yet.
    fn queue_plain(&self, key: Key, message: Out) -> bool {
        let Some(prefix) = grpc::prefix(message.len()) else {
            self.end(key, End::Grpc(grpc::ANSWER_TOO_LONG));
            return false;
        };
        self.enqueue(key, [Out::Bytes(Bytes::copy_from_slice(&prefix)), message])
    }

    fn enqueue<const N: usize>(&self, key: Key, parts: [Out; N]) -> bool {
        let mut live = self.live.borrow_mut();
        let Some(entry) = find(&mut live, key) else { return false };
        if entry.end.is_some() {
            return false;
        }
        let mut added = 0;
        for part in parts {
            added += part.len();
            if part.len() > 0 {
                entry.out.push_back(part);
            }
        }
        entry.queued += added;
        if let Some(conn) = &entry.conn {
            conn.unsent.set(conn.unsent.get() + added);
        }
        true
    }

    /// Ends a call behind what is queued.
    fn end(&self, key: Key, end: End) {
        {
            let mut live = self.live.borrow_mut();
            let Some(entry) = find(&mut live, key) else { return };
            if entry.end.is_some() {
                return;
            }
            entry.end = Some(end);
            // Whatever the client still says is of no interest.
            if let Some(reading) = entry.reading.take() {
                self.held.set(self.held.get() - reading.held);
            }
        }
        self.pump(key);
    }

    /// Hands to h2 what the windows allow.
    fn pump(&self, key: Key) {
        let (sent, resumed) = {
            let mut live = self.live.borrow_mut();
            let Some(entry) = find(&mut live, key) else { return };
            let sent = self.pump_entry(key, entry);
            let resumed = matches!(
                entry.reading.as_deref(),
                Some(Reading { what: What::BidiStream { paused: true, .. }, .. })
            ) && entry.room.as_ref().is_some_and(|room| !room.is_full());
            (sent, resumed)
        };
        match sent {
            Sent::Waiting if resumed => self.read(key),
            Sent::Waiting => {}
            Sent::Done => {
                self.remove(key);
            }
            Sent::Gone => self.cancel(key),
        }
    }

    fn pump_entry(&self, key: Key, entry: &mut Entry) -> Sent {
        let Some(conn) = entry.conn.clone() else { return Sent::Gone };
        if entry.out.is_empty() && entry.send.is_none() {
            // Nothing was sent, and if this is the end nothing will be.
            let Some(end) = entry.end.take() else { return Sent::Waiting };
            let Some(mut respond) = entry.respond.take() else { return Sent::Gone };
            conn.wire.borrow_mut().guard.sent();
            let response = match &end {
                End::Grpc(status) => status_response(status),
                End::Plain => return Sent::Gone,
            };
            return match respond.send_response(response, true) {
                Ok(_) => Sent::Done,
                Err(_) => Sent::Gone,
            };
        }
        if entry.send.is_none() && send_headers(entry).is_none() {
            return Sent::Gone;
        }
        let Entry { send, out, queued, waker, room, end, .. } = entry;
        let Some(send) = send else { return Sent::Gone };
        while let Some(front) = out.front_mut() {
            if conn.handed.get() >= HANDED_BYTES_MAX {
                conn.blocked.borrow_mut().push(key);
                return Sent::Waiting;
            }
            // h2 counts in 32 bits, and what one stream has reserved others have to wait for.
            send.reserve_capacity(front.len().min(HANDED_BYTES_MAX));
            let capacity = send.capacity();
            if capacity == 0 {
                let waker = waker.get_or_insert_with(|| conn.ready.waker(key));
                match send.poll_capacity(&mut Context::from_waker(waker)) {
                    Poll::Pending => return Sent::Waiting,
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Sent::Gone,
                }
            }
            let part = front.take(capacity);
            if front.len() == 0 {
                out.pop_front();
            }
            let size = part.remaining();
            if send.send_data(part, false).is_err() {
                return Sent::Gone;
            }
            *queued -= size;
            conn.unsent.set(conn.unsent.get() - size);
            conn.handed.set(conn.handed.get() + size);
            conn.wire.borrow_mut().guard.sent();
            if let Some(room) = room
                && room.drain(size)
                && end.is_none()
            {
                self.event(Event::Room { key });
            }
        }
        let done = match end.take() {
            None => return Sent::Waiting,
            Some(End::Plain) => send.send_data(Data::Bytes(Bytes::new()), true),
            Some(End::Grpc(status)) => {
                let mut trailers = HeaderMap::with_capacity(2);
                status_headers(&status, &mut trailers);
                send.send_trailers(trailers)
            }
        };
        if done.is_ok() { Sent::Done } else { Sent::Gone }
    }

    fn taken(&self, key: Key, bytes: usize) {
        let mut live = self.live.borrow_mut();
        if let Some(entry) = find(&mut live, key)
            && let Some(reading) = &mut entry.reading
        {
            // It fails only for more than was received.
            let _ = reading.body.flow_control().release_capacity(bytes);
        }
    }

    fn answer_http(&self, key: Key, answer: HttpAnswer) {
        {
            let mut live = self.live.borrow_mut();
            let Some(entry) = find(&mut live, key) else { return };
            if let Some(http1) = entry.http1.take() {
                // A failure means that its connection is gone.
                let _ = http1.send(answer);
                drop(live);
                self.remove(key);
                return;
            }
            let Some(mut respond) = entry.respond.take() else { return };
            let mut response = Response::new(());
            *response.status_mut() =
                StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = response.headers_mut();
            for (name, value) in &answer.headers {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
                {
                    headers.append(name, value);
                }
            }
            headers.insert(CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
            let empty = answer.body.is_empty() || answer.bare;
            let Ok(send) = respond.send_response(response, empty) else {
                drop(live);
                self.cancel(key);
                return;
            };
            if empty {
                drop(live);
                self.remove(key);
                return;
            }
            entry.send = Some(send);
            entry.queued += answer.body.len();
            if let Some(conn) = &entry.conn {
                conn.unsent.set(conn.unsent.get() + answer.body.len());
            }
            entry.out.push_back(Out::Bytes(answer.body));
        }
        self.end(key, End::Plain);
    }
}

/// The end of a body.
fn ended(decoder: &Decoder, what: &mut What, conn: &Conn) -> Read {
    match what {
        What::Http { head, collected } => Read::Http(Box::new(HttpRequest {
            method: head.method.as_str().to_owned(),
            target: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    (name.as_str().to_owned(), value)
                })
                .collect(),
            body: std::mem::take(collected).freeze(),
            peer: Arc::clone(&conn.peer),
        })),
        What::Unary if decoder.is_inside() => Read::Refused(grpc::CUT_SHORT_UNARY),
        What::Unary => Read::Refused(grpc::NO_REQUEST_UNARY),
        _ if decoder.is_inside() => Read::Refused(grpc::CUT_SHORT),
        What::ServerStream { request } => match request.take() {
            Some(request) => Read::Request(request),
            None => Read::Refused(grpc::NO_REQUEST),
        },
        What::BidiStream { over, .. } => {
            *over = true;
            Read::HalfClosed
        }
    }
}

fn find(live: &mut slab::Slab<Entry>, key: Key) -> Option<&mut Entry> {
    let index = index_of(key);
    live.get_mut(index).filter(|entry| key_of(entry.generation, index) == key)
}

/// Sends the response's headers, and gives the stream that its messages go to.
fn send_headers(entry: &mut Entry) -> Option<&mut SendStream<Data>> {
    let mut respond = entry.respond.take()?;
    let send = respond.send_response(grpc_response(), false).ok()?;
    Some(entry.send.insert(send))
}

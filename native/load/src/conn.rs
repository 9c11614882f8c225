//! The client's side of HTTP/2, as much of it as gRPC needs, on one non-blocking socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};

use mio::net::TcpStream;

use crate::hpack::{Decoder, Encoder, Status};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;
const ACK: u8 = 1;

const HEAD_BYTES: usize = 9;
const PREFIX_BYTES: usize = 5;
const FRAME_BYTES_MAX: usize = 16_384;
/// What the server may send on a stream and on the connection before it hears from us: fixed, so
/// that no run is spent on finding it.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// What became of a call or stream.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// A message came.
    Message(&'a [u8]),
    /// It is over. For a unary call this comes behind its message.
    Ended(Status),
}

struct Open {
    /// The caller's name for it.
    token: u64,
    /// Bytes of messages that are not complete.
    partial: Vec<u8>,
    /// Received since the last window update.
    unacknowledged: u32,
    window: i64,
}

/// Data that waits for a window.
struct Blocked {
    stream: u32,
    data: Vec<u8>,
    at: usize,
    end: bool,
}

/// One connection.
pub struct Conn {
    socket: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
    open: HashMap<u32, Open>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    blocked: VecDeque<Blocked>,
    window: i64,
    initial_window: i64,
    unacknowledged: u32,
    block: Vec<u8>,
    spare: Vec<Vec<u8>>,
    /// Bytes read and written.
    pub traffic: (u64, u64),
}

fn head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(len as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

impl Conn {
    /// Speaks HTTP/2 on a socket that is (being) connected.
    pub fn new(socket: TcpStream) -> Conn {
        let mut outgoing = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        head(&mut outgoing, 12, SETTINGS, 0, 0);
        outgoing.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        outgoing.extend_from_slice(&STREAM_WINDOW.to_be_bytes());
        head(&mut outgoing, 4, WINDOW_UPDATE, 0, 0);
        outgoing.extend_from_slice(&(CONNECTION_WINDOW - 65_535).to_be_bytes());
        Conn {
            socket,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            next: 1,
            open: HashMap::new(),
            incoming: Vec::new(),
            outgoing,
            blocked: VecDeque::new(),
            window: 65_535,
            initial_window: 65_535,
            unacknowledged: 0,
            block: Vec::new(),
            spare: Vec::new(),
            traffic: (0, 0),
        }
    }

    /// The socket, to be watched.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Calls and streams that are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Opens a stream; returns its number. `metadata` goes along; `message` (unframed) is its first
    /// message; with `end` its only one.
    pub fn call(
        &mut self,
        token: u64,
        path_number: usize,
        path: &str,
        metadata: &[(&str, &str)],
        message: &[u8],
        end: bool,
    ) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.block.clear();
        self.encoder.encode(path_number, path, &mut self.block);
        for (name, value) in metadata {
            self.encoder.plain(name, value, &mut self.block);
        }
        head(&mut self.outgoing, self.block.len(), HEADERS, END_HEADERS, stream);
        self.outgoing.extend_from_slice(&self.block);
        let partial = self.spare.pop().unwrap_or_default();
        let window = self.initial_window;
        self.open.insert(stream, Open { token, partial, unacknowledged: 0, window });
        self.send(stream, message, end);
        stream
    }

    /// Sends a message on an open stream.
    pub fn send(&mut self, stream: u32, message: &[u8], end: bool) {
        let size = PREFIX_BYTES + message.len();
        let prefix = |out: &mut Vec<u8>| {
            out.push(0);
            out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        };
        let Some(open) = self.open.get_mut(&stream) else { return };
        let fits = size <= FRAME_BYTES_MAX && size as i64 <= self.window.min(open.window);
        if fits && self.blocked.is_empty() {
            self.window -= size as i64;
            open.window -= size as i64;
            head(&mut self.outgoing, size, DATA, if end { END_STREAM } else { 0 }, stream);
            prefix(&mut self.outgoing);
            self.outgoing.extend_from_slice(message);
            return;
        }
        let mut data = Vec::with_capacity(size);
        prefix(&mut data);
        data.extend_from_slice(message);
        self.blocked.push_back(Blocked { stream, data, at: 0, end });
        self.unblock();
    }

    fn unblock(&mut self) {
        let mut waiting = VecDeque::new();
        while let Some(mut blocked) = self.blocked.pop_front() {
            let Some(open) = self.open.get_mut(&blocked.stream) else { continue };
            loop {
                let left = blocked.data.len() - blocked.at;
                let part =
                    FRAME_BYTES_MAX.min(left).min(self.window.min(open.window).max(0) as usize);
                if part == 0 {
                    break;
                }
                let end = blocked.end && part == left;
                head(
                    &mut self.outgoing,
                    part,
                    DATA,
                    if end { END_STREAM } else { 0 },
                    blocked.stream,
                );
                self.outgoing.extend_from_slice(&blocked.data[blocked.at..blocked.at + part]);
                blocked.at += part;
                self.window -= part as i64;
                open.window -= part as i64;
                if part == left {
                    break;
                }
            }
            if blocked.at < blocked.data.len() {
                waiting.push_back(blocked);
            }
            if self.window <= 0 {
                break;
            }
        }
        waiting.append(&mut self.blocked);
        self.blocked = waiting;
    }

    /// Writes what the socket takes. True if something is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut at = 0;
        while at < self.outgoing.len() {
            match self.socket.write(&self.outgoing[at..]) {
                Ok(n) => at += n,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
                Err(why) if why.kind() == io::ErrorKind::NotConnected => break,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        self.traffic.1 += at as u64;
        self.outgoing.drain(..at);
        Ok(!self.outgoing.is_empty())
    }

    /// Reads everything that has come, and tells `each` what became of which call.
    pub fn read(
        &mut self,
        scratch: &mut [u8],
        each: &mut impl FnMut(&mut Conn, u64, Outcome<'_>),
    ) -> io::Result<()> {
        loop {
            let n = match self.socket.read(scratch) {
                Ok(0) => return Err(io::Error::other("the server closed the connection")),
                Ok(n) => n,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(why) if why.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(why),
            };
            self.traffic.0 += n as u64;
            if self.incoming.is_empty() {
                let used = self.frames(&scratch[..n], each)?;
                self.incoming.extend_from_slice(&scratch[used..n]);
            } else {
                let mut incoming = std::mem::take(&mut self.incoming);
                incoming.extend_from_slice(&scratch[..n]);
                let used = self.frames(&incoming, each)?;
                incoming.drain(..used);
                self.incoming = incoming;
            }
            if n < scratch.len() {
                return Ok(());
            }
        }
    }

    fn frames(
        &mut self,
        data: &[u8],
        each: &mut impl FnMut(&mut Conn, u64, Outcome<'_>),
    ) -> io::Result<usize> {
        let mut at = 0;
        while let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) =
            data[at..].first_chunk::<HEAD_BYTES>()
        {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
            let Some(payload) = data.get(at + HEAD_BYTES..at + HEAD_BYTES + len) else { break };
            at += HEAD_BYTES + len;
            self.frame(kind, flags, stream, payload, each)?;
        }
        Ok(at)
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        each: &mut impl FnMut(&mut Conn, u64, Outcome<'_>),
    ) -> io::Result<()> {
        match kind {
            DATA => {
                self.credit(stream, payload.len() as u32);
                self.data(stream, unpadded(flags, payload)?, each);
                if flags & END_STREAM != 0 {
                    self.ended(stream, None, each);
                }
            }
            HEADERS => {
                let mut block = unpadded(flags, payload)?;
                if flags & PRIORITY != 0 {
                    block = block.get(5..).ok_or_else(|| broken("a HEADERS frame"))?;
                }
                if flags & END_HEADERS == 0 {
                    return Err(broken("a header block in parts, which is not supported here"));
                }
                let status = self.decoder.decode(block).map_err(io::Error::other)?;
                if flags & END_STREAM != 0 {
                    self.ended(stream, status, each);
                }
            }
            CONTINUATION => return Err(broken("a CONTINUATION frame")),
            RST_STREAM => {
                let code = payload.last().copied().unwrap_or_default();
                let status = Status { code: 13, message: format!("stream reset with {code}") };
                self.ended(stream, Some(status), each);
            }
            SETTINGS if flags & ACK == 0 => {
                for entry in payload.chunks_exact(6) {
                    if let [0, 4, a, b, c, d] = *entry {
                        let window = i64::from(u32::from_be_bytes([a, b, c, d]));
                        for open in self.open.values_mut() {
                            open.window += window - self.initial_window;
                        }
                        self.initial_window = window;
                    }
                }
                head(&mut self.outgoing, 0, SETTINGS, ACK, 0);
                self.unblock();
            }
            PING if flags & ACK == 0 => {
                head(&mut self.outgoing, payload.len(), PING, ACK, 0);
                self.outgoing.extend_from_slice(payload);
            }
            GOAWAY => {
                let text = payload.get(8..).unwrap_or_default();
                let text = String::from_utf8_lossy(text).into_owned();
                return Err(io::Error::other(format!("the server sent GOAWAY {text}")));
            }
            WINDOW_UPDATE => {
                if let [a, b, c, d] = *payload {
                    let more = i64::from(u32::from_be_bytes([a, b, c, d]));
                    if stream == 0 {
                        self.window += more;
                    } else if let Some(open) = self.open.get_mut(&stream) {
                        open.window += more;
                    }
                    self.unblock();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes bytes that came, and lets the server send as many again.
    fn credit(&mut self, stream: u32, len: u32) {
        self.unacknowledged += len;
        if self.unacknowledged >= CONNECTION_WINDOW / 2 {
            let more = std::mem::take(&mut self.unacknowledged);
            head(&mut self.outgoing, 4, WINDOW_UPDATE, 0, 0);
            self.outgoing.extend_from_slice(&more.to_be_bytes());
        }
        if let Some(open) = self.open.get_mut(&stream) {
            open.unacknowledged += len;
            if open.unacknowledged >= STREAM_WINDOW / 2 {
                let more = std::mem::take(&mut open.unacknowledged);
                head(&mut self.outgoing, 4, WINDOW_UPDATE, 0, stream);
                self.outgoing.extend_from_slice(&more.to_be_bytes());
            }
        }
    }

    fn data(
        &mut self,
        stream: u32,
        payload: &[u8],
        each: &mut impl FnMut(&mut Conn, u64, Outcome<'_>),
    ) {
        let Some(open) = self.open.get_mut(&stream) else { return };
        let token = open.token;
        if open.partial.is_empty() {
            let used = messages(payload, |message| each(self, token, Outcome::Message(message)));
            if let Some(open) = self.open.get_mut(&stream) {
                open.partial.extend_from_slice(&payload[used..]);
            }
            return;
        }
        open.partial.extend_from_slice(payload);
        let mut partial = std::mem::take(&mut open.partial);
        let used = messages(&partial, |message| each(self, token, Outcome::Message(message)));
        partial.drain(..used);
        if let Some(open) = self.open.get_mut(&stream) {
            open.partial = partial;
        }
    }

    fn ended(
        &mut self,
        stream: u32,
        status: Option<Status>,
        each: &mut impl FnMut(&mut Conn, u64, Outcome<'_>),
    ) {
        let Some(mut open) = self.open.remove(&stream) else { return };
        let missing = || Status { code: 2, message: "the call ended without a status".to_owned() };
        open.partial.clear();
        if open.partial.capacity() <= 1 << 16 {
            self.spare.push(open.partial);
        }
        each(self, open.token, Outcome::Ended(status.unwrap_or_else(missing)));
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("the server sent {what} that makes no sense here"))
}

fn unpadded(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let found = payload
        .split_first()
        .and_then(|(pad, rest)| rest.get(..rest.len().checked_sub(usize::from(*pad))?));
    found.ok_or_else(|| broken("padding"))
}

/// Calls `each` with every whole message; returns how many bytes they took.
fn messages(data: &[u8], mut each: impl FnMut(&[u8])) -> usize {
    let mut at = 0;
    while let Some(&[_, a, b, c, d]) = data[at..].first_chunk::<PREFIX_BYTES>() {
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(message) = data.get(at + PREFIX_BYTES..at + PREFIX_BYTES + len) else { break };
        at += PREFIX_BYTES + len;
        each(message);
    }
    at
}

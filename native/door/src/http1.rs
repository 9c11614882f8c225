//! HTTP/1.1 on the gRPC port, for probes and scrapes: small requests, one at a time.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::queue::{HttpAnswer, HttpRequest, Peer};
use crate::socket::Socket;
use crate::stats::Stats;
use crate::world::World;

const HEADERS_MAX: usize = 256;
/// Nothing that is served here reads a body. A small one is let pass; a longer one, or one whose
/// length is not known, ends the connection behind the answer.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a request may take to arrive.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long a connection may lie idle between two.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// How long an answer may take to be made, and again to be sent.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What the bytes so far are.
#[doc(hidden)]
pub enum Head {
    /// More bytes are needed.
    Partial,
    /// A request.
    Whole(Whole),
    /// Not HTTP, or nothing that is served: the status to say so with, and why.
    Bad(u16, &'static str),
}

/// A request and where the next one begins.
#[doc(hidden)]
pub struct Whole {
    /// The request without its body.
    pub request: Box<HttpRequest>,
    /// Where its body begins.
    pub at: usize,
    /// How long that is; 0 if it is not read.
    pub length: usize,
    /// Whether there may be a next one.
    pub keep: bool,
}

/// Serves requests until one of both sides closes the connection.
pub(crate) async fn serve(world: &Rc<World>, mut socket: Socket, peer: Arc<Peer>, left: Vec<u8>) {
    let stats = &world.core.stats;
    let mut data = left;
    loop {
        if data.is_empty() {
            match timeout(IDLE_MAX, socket.read_buf(&mut data)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return,
            }
        }
        let reading = read(world, &mut socket, &peer, &mut data);
        let (answer, keep) = match timeout(REQUEST_MAX, reading).await {
            Err(_) => return Stats::count(&stats.handshake_timeouts_total),
            Ok(Err(_)) => return Stats::count(&stats.handshake_failures_total),
            Ok(Ok(Err((status, why)))) => {
                Stats::count(&stats.handshake_failures_total);
                (refusal(status, why), false)
            }
            Ok(Ok(Ok((request, keep)))) => {
                let (sender, receiver) = oneshot::channel();
                let key = world.http1(request, sender);
                world.publish();
                match timeout(ANSWER_MAX, receiver).await {
                    Ok(Ok(answer)) => (answer, keep && !world.draining.get()),
                    _ => return world.cancel(key),
                }
            }
        };
        match timeout(ANSWER_MAX, write(&mut socket, &answer, keep)).await {
            Ok(Ok(())) if keep => {}
            _ => return,
        }
    }
}

/// In Go's form.
fn refusal(status: u16, why: &str) -> HttpAnswer {
    let reason = http::StatusCode::from_u16(status).unwrap_or_default();
    let reason = reason.canonical_reason().unwrap_or_default();
    let body = match status {
        417 => return HttpAnswer { status, headers: vec![], body: Bytes::new(), bare: false },
        501 => why.to_owned(),
        _ if why.is_empty() => format!("{status} {reason}"),
        _ => format!("{status} {reason}: {why}"),
    };
    let kind = ("Content-Type".to_owned(), "text/plain; charset=utf-8".to_owned());
    HttpAnswer { status, headers: vec![kind], body: body.into(), bare: false }
}

/// The next request, and whether there may be another; what it does not take stays in `data`.
async fn read(
    world: &World,
    socket: &mut Socket,
    peer: &Arc<Peer>,
    data: &mut Vec<u8>,
) -> io::Result<Result<(Box<HttpRequest>, bool), (u16, &'static str)>> {
    let limits = &world.core.limits;
    loop {
        match head(data, peer, limits.header_bytes_max as usize) {
            Head::Bad(status, why) => return Ok(Err((status, why))),
            Head::Whole(Whole { mut request, at, length, keep }) => {
                if let Some(body) = data.get(at..).and_then(|rest| rest.get(..length)) {
                    request.body = Bytes::copy_from_slice(body);
                    data.drain(..at + length);
                    return Ok(Ok((request, keep)));
                }
            }
            Head::Partial => {}
        }
        if socket.read_buf(data).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads the head of a request, at most `head_max` bytes long.
#[doc(hidden)]
pub fn head(data: &[u8], peer: &Arc<Peer>, head_max: usize) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let at = match parsed.parse(data) {
        Ok(httparse::Status::Complete(at)) if at <= head_max => at,
        Ok(httparse::Status::Partial) if data.len() <= head_max => return Head::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Head::Bad(431, ""),
        Err(httparse::Error::HeaderName) => return Head::Bad(400, "invalid header name"),
        Err(_) => return Head::Bad(400, ""),
    };
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let all = |name: &'static str| {
        headers.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    };
    let is_new = parsed.version == Some(1);
    match all("host").count() {
        0 if is_new => return Head::Bad(400, "missing required Host header"),
        0 | 1 => {}
        _ => return Head::Bad(400, ""),
    }
    let mut keep =
        is_new && !all("connection").flat_map(|value| value.split(',')).any(|t| is(t, "close"));
    let mut length = 0;
    let mut lengths = all("content-length");
    if let Some(first) = lengths.next() {
        let digits = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || lengths.any(|other| other != first) {
            return Head::Bad(400, "");
        }
        length = first.parse().unwrap_or(usize::MAX);
    }
    let mut unread = length > BODY_BYTES_MAX;
    for coding in all("transfer-encoding") {
        if !is(coding, "chunked") {
            return Head::Bad(501, "Unsupported transfer encoding");
        }
        unread = true;
    }
    for expected in all("expect") {
        if !is(expected, "100-continue") {
            return Head::Bad(417, "");
        }
        // Nobody wants the body, so the client is not asked for it.
        unread = true;
    }
    if unread {
        length = 0;
        keep = false;
    }
    let request = HttpRequest {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers,
        body: Bytes::new(),
        peer: Arc::clone(peer),
    };
    Head::Whole(Whole { request: Box::new(request), at, length, keep })
}

fn is(token: &str, wanted: &str) -> bool {
    token.trim().eq_ignore_ascii_case(wanted)
}

async fn write(socket: &mut Socket, answer: &HttpAnswer, keep: bool) -> io::Result<()> {
    let status = http::StatusCode::from_u16(answer.status).unwrap_or_default();
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", answer.status, status.canonical_reason().unwrap_or("-"));
    for (name, value) in &answer.headers {
        let clean = |text: &str| !text.bytes().any(|byte| byte < b' ' || byte == 0x7f);
        if clean(name) && clean(value) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    let close = if keep { "" } else { "Connection: close\r\n" };
    head.push_str(&format!("Content-Length: {}\r\n{close}\r\n", answer.body.len()));
    socket.write_all(head.as_bytes()).await?;
    if !answer.bare {
        socket.write_all(&answer.body).await?;
    }
    socket.flush().await?;
    if keep {
        return Ok(());
    }
    socket.shutdown().await?;
    // Until the client closes too: it may still be reading.
    let mut rest = [0; 4096];
    while socket.read(&mut rest).await? > 0 {}
    Ok(())
}

//! HTTP/1.1 on the gRPC port: one small request a connection, for probes and scrapes.

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

const HEADERS_MAX: usize = 100;
/// Nothing that is served here reads a body; a small one is let pass.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a request may take to arrive.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long its answer may take to be made, and again to be sent.
const ANSWER_MAX: Duration = Duration::from_secs(30);

enum Head {
    /// More bytes are needed.
    Partial,
    /// The request without its body, where the body begins, and how long it is.
    Whole(Box<HttpRequest>, usize, usize),
    /// Not HTTP, or nothing that is served; the status to say so with.
    Bad(u16),
}

/// Serves one request and closes the connection.
pub(crate) async fn serve(world: &Rc<World>, mut socket: Socket, peer: Arc<Peer>, left: Vec<u8>) {
    let stats = &world.core.stats;
    let request = match timeout(REQUEST_MAX, read(world, &mut socket, peer, left)).await {
        Err(_) => return Stats::count(&stats.handshake_timeouts_total),
        Ok(Err(_)) => return Stats::count(&stats.handshake_failures_total),
        Ok(Ok(request)) => request,
    };
    let answer = match request {
        Err(status) => {
            Stats::count(&stats.handshake_failures_total);
            HttpAnswer { status, headers: Vec::new(), body: Bytes::new(), bare: false }
        }
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            let key = world.http1(request, sender);
            world.publish();
            match timeout(ANSWER_MAX, receiver).await {
                Ok(Ok(answer)) => answer,
                _ => return world.cancel(key),
            }
        }
    };
    let _ = timeout(ANSWER_MAX, write(&mut socket, &answer)).await;
}

async fn read(
    world: &World,
    socket: &mut Socket,
    peer: Arc<Peer>,
    mut data: Vec<u8>,
) -> io::Result<Result<Box<HttpRequest>, u16>> {
    let limits = &world.core.limits;
    loop {
        match head(&data, &peer, limits.header_bytes_max as usize, BODY_BYTES_MAX) {
            Head::Bad(status) => return Ok(Err(status)),
            Head::Whole(mut request, at, length) => {
                if let Some(body) = data.get(at..).and_then(|rest| rest.get(..length)) {
                    request.body = Bytes::copy_from_slice(body);
                    return Ok(Ok(request));
                }
            }
            Head::Partial => {}
        }
        if socket.read_buf(&mut data).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn head(data: &[u8], peer: &Arc<Peer>, head_max: usize, body_max: usize) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let at = match parsed.parse(data) {
        Ok(httparse::Status::Complete(at)) if at <= head_max => at,
        Ok(httparse::Status::Partial) if data.len() <= head_max => return Head::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Head::Bad(431),
        Err(_) => return Head::Bad(400),
    };
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value);
    if find("transfer-encoding").is_some() {
        return Head::Bad(501);
    }
    let length = match find("content-length").map(|text| text.parse::<usize>()) {
        None => 0,
        Some(Ok(length)) if length <= body_max => length,
        Some(Ok(_)) => return Head::Bad(413),
        Some(Err(_)) => return Head::Bad(400),
    };
    let request = HttpRequest {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers,
        body: Bytes::new(),
        peer: Arc::clone(peer),
    };
    Head::Whole(Box::new(request), at, length)
}

async fn write(socket: &mut Socket, answer: &HttpAnswer) -> io::Result<()> {
    let status = http::StatusCode::from_u16(answer.status).unwrap_or_default();
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", answer.status, status.canonical_reason().unwrap_or("-"));
    for (name, value) in &answer.headers {
        let clean = |text: &str| !text.bytes().any(|byte| byte < b' ' || byte == 0x7f);
        if clean(name) && clean(value) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n", answer.body.len()));
    socket.write_all(head.as_bytes()).await?;
    if !answer.bare {
        socket.write_all(&answer.body).await?;
    }
    socket.flush().await?;
    socket.shutdown().await?;
    // Until the client closes too: it may still be reading.
    let mut rest = [0; 4096];
    while socket.read(&mut rest).await? > 0 {}
    Ok(())
}

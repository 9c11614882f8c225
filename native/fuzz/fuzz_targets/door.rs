//! A whole door, and connections whose bytes are the input's: frames that are nearly right, or
//! nothing of the kind. After each of them nothing may be left open, and an honest call is served.

#![no_main]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jotd_door::grpc::Status;
use jotd_door::queue::{Command, Event, HttpAnswer, Message};
use jotd_door::{Door, Kind, Limits, Listen, Options, Place};
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PATHS: [&[u8]; 4] = [b"/t.S/Echo", b"/t.S/List", b"/t.S/Bidi", b"/t.S/Nope"];
const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    door: Arc<Door>,
    path: PathBuf,
}

fn running() -> &'static Running {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    RUNNING.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("jotd-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let methods = [
            ("/t.S/Echo".to_owned(), Kind::Unary),
            ("/t.S/List".to_owned(), Kind::ServerStream),
            ("/t.S/Bidi".to_owned(), Kind::BidiStream),
        ];
        let options = Options {
            listen: vec![Listen { place: Place::Unix(path.clone()), secure: false }],
            tls: None,
            methods: methods.to_vec(),
            limits: Limits { request_bytes_max: 1000, ..Limits::default() },
        };
        let door = Arc::new(Door::start(options).map_err(|(_, why)| why).unwrap());
        let theirs = Arc::clone(&door);
        thread::spawn(move || serve(&theirs));
        Running { door, path }
    })
}

fn message(bytes: Bytes) -> Message {
    Message { bytes, framed: false }
}

/// What Python would do: echoes.
fn serve(door: &Door) {
    let (mut calls, mut events, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let mut rooms = HashMap::new();
    loop {
        door.take(64, 1 << 20, &mut calls, &mut events);
        let idle = calls.is_empty() && events.is_empty();
        for call in calls.drain(..) {
            out.push(Command::Answer(call.key, message(call.request)));
        }
        for event in events.drain(..) {
            match event {
                Event::Opened { key, room, .. } => {
                    rooms.insert(key, room);
                }
                Event::Messages { key, messages, credit } => {
                    out.push(Command::Taken(key, credit));
                    for part in messages {
                        rooms[&key].fill(part.len() + 5);
                        out.push(Command::Send(key, message(part)));
                    }
                }
                Event::HalfClosed { key } => out.push(Command::Close(key, Status::OK)),
                Event::Closed { key } => assert!(rooms.remove(&key).is_some()),
                Event::Unknown { key, path } => {
                    out.push(Command::Fail(key, Status::new(12, path)));
                }
                Event::Http { key, request } => {
                    let bare = request.method == "HEAD";
                    let headers = vec![("X".to_owned(), request.target)];
                    let answer = HttpAnswer { status: 200, headers, body: request.body, bare };
                    out.push(Command::Http(key, Box::new(answer)));
                }
                Event::Room { .. } | Event::Drained => {}
            }
        }
        if !out.is_empty() {
            door.core().push(&mut out);
            door.core().wake();
        }
        if idle {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(&[0x10, name.len() as u8]);
    out.extend_from_slice(name);
    out.push(value.len() as u8);
    out.extend_from_slice(value);
}

fn headers(path: &[u8], more: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    literal(&mut block, b":method", b"POST");
    literal(&mut block, b":scheme", b"http");
    literal(&mut block, b":path", path);
    literal(&mut block, b":authority", b"x");
    literal(&mut block, b"content-type", b"application/grpc");
    block.extend_from_slice(more);
    block
}

/// Makes a conversation of the input: each step is a few bytes of it.
fn script(mut data: &[u8]) -> Vec<u8> {
    let mut out = [PREFACE, SETTINGS].concat();
    let mut newest = 1u32;
    while let Some((&[what, how, size], rest)) = data.split_first_chunk::<3>() {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(size)));
        data = rest;
        let stream = newest.saturating_sub(2 * u32::from(how >> 5));
        match what % 12 {
            0 => out.extend_from_slice(part),
            1 | 2 => {
                newest += 2;
                let path = PATHS[usize::from(how & 3)];
                let end = 4 | (how >> 2 & 1);
                frame(&mut out, 1, end, newest, &headers(path, part));
            }
            3 => frame(&mut out, 0, how & 9, stream, part),
            4 | 5 => {
                let len = part.len() as u32;
                let body = [&[how >> 4 & 1], &len.to_be_bytes()[..], part].concat();
                frame(&mut out, 0, how & 1, stream, &body);
            }
            6 => frame(&mut out, 3, 0, stream, &[0, 0, 0, how]),
            7 => frame(&mut out, 8, 0, stream, &[how >> 6, size, what, how]),
            8 => frame(&mut out, 8, 0, 0, &[0, how, size, what]),
            9 => frame(&mut out, 4, how & 1, 0, part),
            10 => frame(&mut out, 9, how & 4, newest, part),
            _ => frame(&mut out, how, size, stream, part),
        }
    }
    out
}

/// Sends, and reads until the server has said what it has to say.
fn talk(path: &PathBuf, bytes: &[u8], cut: usize) {
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    for part in bytes.chunks(cut) {
        if socket.write_all(part).is_err() {
            break;
        }
    }
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut rest = [0; 65536];
    while socket.read(&mut rest).is_ok_and(|n| n > 0) {}
}

fn honest(path: &PathBuf) {
    let mut bytes = [PREFACE, SETTINGS].concat();
    frame(&mut bytes, 1, 4, 1, &headers(PATHS[0], b""));
    frame(&mut bytes, 0, 1, 1, b"\0\0\0\0\x05hello");
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&bytes).unwrap();
    let mut got = Vec::new();
    while !got.windows(5).any(|part| part == b"hello") {
        let mut part = [0; 4096];
        match socket.read(&mut part) {
            Ok(n) if n > 0 => got.extend_from_slice(&part[..n]),
            // The fuzzer's own clock.
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            other => panic!("an honest client is not served: {other:?}"),
        }
    }
}

fn level(door: &Door, name: &str) -> u64 {
    let found = door.core().stats.all().into_iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value).unwrap()
}

fuzz_target!(|data: &[u8]| {
    let Some((&[mode, cut], data)) = data.split_first_chunk::<2>() else { return };
    let Running { door, path } = running();
    let bytes = match mode % 4 {
        0 => data.to_vec(),
        1 => [PREFACE, SETTINGS, data].concat(),
        _ => script(data),
    };
    talk(path, &bytes, usize::from(cut) * 16 + 1);
    honest(path);
    let until = Instant::now() + PATIENCE;
    while level(door, "live_open") > 0 || level(door, "connections_open") > 0 {
        assert!(Instant::now() < until, "something is left open");
        thread::sleep(Duration::from_micros(100));
    }
});

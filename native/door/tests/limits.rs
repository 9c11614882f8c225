//! Limits that a peer meets, and the numbers in `Stats` that tell of it: those that need a limit
//! smaller than a server's. `tests/unit/native/test_door.py` has the rest.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use jotd_door::queue::{Command, Event, Message};
use jotd_door::{Door, Kind, Limits, Listen, Options, Place};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const CALL: &[u8] = b"/t.S/Call";
const BIDI: &[u8] = b"/t.S/Bidi";
/// A bound against hanging.
const PATIENCE: Duration = Duration::from_secs(20);

fn door(limits: Limits) -> Door {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options {
        listen: vec![Listen { place: Place::Tcp(any), secure: false }],
        tls: None,
        methods: vec![
            ("/t.S/Call".to_owned(), Kind::Unary),
            ("/t.S/Bidi".to_owned(), Kind::BidiStream),
        ],
        limits,
    };
    Door::start(options).map_err(|(_, why)| why).unwrap()
}

fn counted(door: &Door, name: &str) -> u64 {
    let found = door.core().stats.all().into_iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value).unwrap()
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn opening(stream: u32, path: &[u8]) -> Vec<u8> {
    let fields: [(&[u8], &[u8]); 6] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        for text in [name, value] {
            if text == name {
                block.push(0x10);
            }
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text);
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// A message with the length that is said, and the bytes that are there.
fn message(said: usize, there: usize) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(said).unwrap().to_be_bytes());
    out.resize(5 + there, b'x');
    out
}

fn call(stream: u32, size: usize) -> Vec<u8> {
    [opening(stream, CALL), frame(DATA, END_STREAM, stream, &message(size, size))].concat()
}

/// A client, and what came back so far.
struct Client {
    socket: TcpStream,
    came: Vec<u8>,
}

impl Client {
    fn new(door: &Door) -> Client {
        let Place::Tcp(address) = door.bound()[0].place else { panic!("it listens on TCP") };
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { socket, came: Vec::new() };
        client.say(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
        client
    }

    fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Reads what is there, and gives all frames of a kind on a stream by their payloads.
    fn frames(&mut self, kind: u8, stream: u32) -> Vec<Vec<u8>> {
        let mut part = [0; 65536];
        loop {
            match self.socket.read(&mut part) {
                Ok(0) => panic!("the connection was ended"),
                Ok(n) => self.came.extend_from_slice(&part[..n]),
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break;
                }
                Err(why) => panic!("{why}"),
            }
        }
        let mut found = Vec::new();
        let mut rest = self.came.as_slice();
        while let Some((head, more)) = rest.split_first_chunk::<9>() {
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, more)) = more.split_at_checked(size) else { break };
            if head[3] == kind && head[5..] == stream.to_be_bytes() {
                found.push(payload.to_vec());
            }
            rest = more;
        }
        found
    }

    /// Waits until a stream that was not answered has ended with trailers all the same.
    fn is_refused(&mut self, stream: u32) {
        until("it is refused", || !self.frames(HEADERS, stream).is_empty());
        assert!(self.frames(DATA, stream).is_empty());
    }

    /// An honest call, answered by `serve`.
    fn is_served(&mut self, door: &Door, stream: u32) {
        self.say(&call(stream, 3));
        until("it is served", || {
            serve(door);
            self.frames(DATA, stream).concat().windows(3).any(|part| part == b"xxx")
        });
    }
}

/// What Python would do with the calls that wait: echo.
fn serve(door: &Door) -> usize {
    let (mut calls, mut events) = (Vec::new(), Vec::new());
    door.take(usize::MAX, usize::MAX, &mut calls, &mut events);
    let served = calls.len();
    let answer = |bytes| Message { bytes, framed: false };
    let mut out = calls.drain(..).map(|c| Command::Answer(c.key, answer(c.request))).collect();
    door.core().push(&mut out);
    door.core().wake();
    served
}

#[test]
fn a_message_that_is_too_long_is_counted() {
    let door = door(Limits { request_bytes_max: 1000, ..Limits::default() });
    let mut client = Client::new(&door);
    client.say(&call(1, 1000));
    until("it is served", || serve(&door) == 1);
    assert_eq!(counted(&door, "oversize_total"), 0);

    // By what its prefix says, before any of it is there; on a stream as in a call.
    for (stream, path) in [(3, CALL), (5, BIDI)] {
        client.say(&[opening(stream, path), frame(DATA, 0, stream, &message(1001, 0))].concat());
        client.is_refused(stream);
    }
    assert_eq!(counted(&door, "oversize_total"), 2);
    client.is_served(&door, 7);
    assert_eq!(counted(&door, "oversize_total"), 2);
    assert_eq!(counted(&door, "malformed_total"), 0);
}

#[test]
fn unfinished_requests_are_refused_and_counted_when_they_are_too_much_together() {
    let door = door(Limits { held_bytes_max: 10_000, ..Limits::default() });
    let (mut one, mut other) = (Client::new(&door), Client::new(&door));
    // Two of them fit, whoever sends them; each lacks its last byte.
    for (client, stream) in [(&mut one, 1), (&mut other, 1)] {
        let part = message(4001, 4000);
        client.say(&[opening(stream, CALL), frame(DATA, 0, stream, &part)].concat());
    }
    until("both are read", || counted(&door, "received_bytes_total") > 8000);
    other.say(&[opening(3, CALL), frame(DATA, 0, 3, &message(4001, 4000))].concat());
    other.is_refused(3);
    assert_eq!(counted(&door, "held_refused_total"), 1);
    assert_eq!(counted(&door, "oversize_total"), 0);

    // The refused one has given its place back, and the others are whole.
    other.is_served(&door, 5);
    for client in [&mut one, &mut other] {
        client.say(&frame(DATA, END_STREAM, 1, b"x"));
    }
    let mut served = 0;
    until("the others are served", || {
        served += serve(&door);
        served == 2
    });
    other.say(&[opening(7, CALL), frame(DATA, 0, 7, &message(8001, 8000))].concat());
    other.say(&frame(DATA, END_STREAM, 7, b"x"));
    until("there is room again", || serve(&door) == 1);
    assert_eq!(counted(&door, "held_refused_total"), 1);
}

#[test]
fn reading_stops_and_is_counted_when_too_much_waits() {
    for limits in [
        Limits { waiting_max: 10, ..Limits::default() },
        Limits { waiting_bytes_max: 10_000, ..Limits::default() },
    ] {
        let door = door(limits);
        let mut client = Client::new(&door);
        let mut said = 0u32;
        until("it is full", || {
            client.say(&call(2 * said + 1, 1000));
            said += 1;
            counted(&door, "inbox_full_total") > 0
        });
        let read = counted(&door, "calls_total");
        for _ in 0..50 {
            client.say(&call(2 * said + 1, 1000));
            said += 1;
        }
        thread::sleep(Duration::from_millis(50));
        assert_eq!(counted(&door, "calls_total"), read);

        let mut served = 0;
        until("all are served", || {
            served += serve(&door);
            served == said as usize
        });
        assert_eq!(counted(&door, "calls_total"), u64::from(said));
    }
}

/// h2 does that by itself and tells nobody, so there is no number; the client learns of it.
#[test]
fn streams_beyond_the_limit_are_refused_by_h2() {
    let door = door(Limits { streams_max: 2, ..Limits::default() });
    let mut client = Client::new(&door);
    for stream in [1, 3] {
        client.say(&opening(stream, BIDI));
    }
    let (mut calls, mut events) = (Vec::new(), Vec::new());
    until("both are open", || {
        door.take(10, 1000, &mut calls, &mut events);
        events.iter().filter(|event| matches!(event, Event::Opened { .. })).count() == 2
    });
    // A client that knows of the limit by now is refused too.
    let before: HashMap<_, _> = door.core().stats.all().into_iter().collect();
    client.say(&opening(5, BIDI));
    until("it is refused", || client.frames(RST_STREAM, 5) == [REFUSED_STREAM.to_be_bytes()]);
    for (name, value) in door.core().stats.all() {
        if ![
            "frames_total",
            "received_bytes_total",
            "sent_bytes_total",
            "reads_total",
            "writes_total",
        ]
        .contains(&name)
        {
            assert_eq!(value, before[name], "{name}");
        }
    }
}

//! Where the door listens, what it serves, and its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::guard::Rates;

/// How a method talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One message each way.
    Unary,
    /// One request, any number of answers.
    ServerStream,
    /// Messages both ways as either likes.
    BidiStream,
}

/// One place to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where.
    pub place: Place,
    /// Whether clients speak TLS.
    pub secure: bool,
}

/// An address.
#[derive(Clone, Debug)]
pub enum Place {
    /// TCP; port 0 asks the operating system for one.
    Tcp(SocketAddr),
    /// The path of a unix socket, which must not exist.
    Unix(PathBuf),
}

/// A certificate and who may come in, all as PEM.
#[derive(Clone)]
pub struct Tls {
    /// The certificate chain.
    pub cert: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// With it, every client has to show a certificate that one of these signed.
    pub trusted_ca: Option<Vec<u8>>,
}

/// Everything that a peer could overdo (I8). Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest request message.
    pub request_bytes_max: usize,
    /// Calls and streams open at once on one connection.
    pub streams_max: u32,
    /// All headers of one request together.
    pub header_bytes_max: u32,
    /// Bytes that a stream may have queued before its service has to wait.
    pub room_bytes: usize,
    /// Connections open at once.
    pub connections_max: usize,
    /// How long TLS and the HTTP/2 greeting may take together.
    pub handshake_max: Duration,
    /// How long a connection may be silent before the server pings it; none for never.
    pub keepalive_interval: Option<Duration>,
    /// How long it then waits for any sign of life.
    pub keepalive_timeout: Duration,
    /// Calls and events that wait for Python before the door reads no more.
    pub waiting_max: usize,
    /// Bytes of their messages, likewise.
    pub waiting_bytes_max: usize,
    /// Bytes of unfinished requests, over all connections, before calls are refused.
    pub held_bytes_max: usize,
    /// Bytes of answers that a connection has not taken before no more of its calls are served.
    pub unsent_bytes_max: usize,
    /// Frame rates.
    pub rates: Rates,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_bytes_max: 2 << 20,
            streams_max: 16_384,
            header_bytes_max: 16 << 10,
            room_bytes: 1 << 20,
            connections_max: 16_384,
            handshake_max: Duration::from_secs(10),
            keepalive_interval: Some(Duration::from_secs(2 * 3600)),
            keepalive_timeout: Duration::from_secs(20),
            waiting_max: 20_000,
            waiting_bytes_max: 64 << 20,
            held_bytes_max: 256 << 20,
            unsent_bytes_max: 32 << 20,
            rates: Rates::default(),
        }
    }
}

/// What a door is started with.
#[derive(Clone)]
pub struct Options {
    /// Addresses; all are bound, or none.
    pub listen: Vec<Listen>,
    /// Needed if one of them is secure.
    pub tls: Option<Tls>,
    /// Full names of methods, such as "/etcdserverpb.KV/Put", with their kinds.
    pub methods: Vec<(String, Kind)>,
    /// Limits.
    pub limits: Limits,
}

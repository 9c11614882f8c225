//! Watches the frames that a peer sends, before HTTP/2 makes anything of them.
//!
//! h2 bounds what a peer can make it remember. What it does not tell is *how often* something came:
//! resets, pings, settings. The guard reads only the nine bytes before each frame, so it costs
//! next to nothing, and sees a cancelled stream without asking each stream in turn.

use std::ops::Range;
use std::time::Duration;

/// Bytes of the client's preface, before the first frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;

/// HTTP/2's ENHANCE_YOUR_CALM.
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// grpc-go's number: so many pings that came too soon are forgiven.
const PING_STRIKES_MAX: u32 = 2;
/// grpc-go's rule for a connection without calls.
const PING_MIN_IDLE_MS: u64 = 2 * 3600 * 1000;

/// Rates that a peer may keep up, each with a burst.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Streams reset: (burst, a second).
    pub resets: (u32, u32),
    /// SETTINGS frames.
    pub settings: (u32, u32),
    /// Frames that do nothing here: PRIORITY, unknown ones, stray acknowledgements.
    pub idle: (u32, u32),
    /// Time between pings, as etcd's `--grpc-keepalive-min-time`.
    pub ping_min: Duration,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates {
            // An honest client may give up all its calls at once, but not again and again.
            resets: (10_000, 1_000),
            settings: (100, 10),
            idle: (1_000, 100),
            ping_min: Duration::from_secs(5),
        }
    }
}

/// A peer that does not behave; its connection ends with ENHANCE_YOUR_CALM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Streams opened and reset (CVE-2023-44487).
    Resets,
    /// Pings more often than allowed.
    Pings,
    /// SETTINGS without end (CVE-2019-9515).
    Settings,
    /// Frames without use.
    Idle,
}

impl Flood {
    /// Debug data of the GOAWAY. gRPC clients slow their pings down when they read this one.
    pub fn text(self) -> &'static str {
        match self {
            Flood::Resets => "too_many_resets",
            Flood::Pings => "too_many_pings",
            Flood::Settings => "too_many_settings",
            Flood::Idle => "too_many_idle_frames",
        }
    }
}

/// A bucket of tokens, in thousandths so that slow rates are exact.
struct Bucket {
    tokens: u64,
    burst: u64,
    per_ms: u64,
    at_ms: u64,
}

impl Bucket {
    fn new((burst, per_second): (u32, u32), now_ms: u64) -> Bucket {
        let burst = u64::from(burst) * 1000;
        Bucket { tokens: burst, burst, per_ms: u64::from(per_second), at_ms: now_ms }
    }

    fn take(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        let earned = passed.saturating_mul(self.per_ms);
        self.tokens = self.burst.min(self.tokens.saturating_add(earned));
        match self.tokens.checked_sub(1000) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// See the module. One for each connection.
pub struct Guard {
    /// Bytes to pass over: the preface, then payloads.
    skip: usize,
    head: [u8; HEAD_BYTES],
    have: usize,
    resets: Bucket,
    settings: Bucket,
    idle: Bucket,
    ping_min_ms: u64,
    ping_last_ms: Option<u64>,
    ping_strikes: u32,
    /// Streams that the peer has reset since this was last emptied.
    pub reset: Vec<u32>,
    /// The newest stream that the peer opened.
    pub last_stream: u32,
    /// Frames seen.
    pub frames: u64,
    /// True once a SETTINGS frame came: the connection speaks HTTP/2.
    pub greeted: bool,
    /// If set, `scan` notes where header blocks lie in what it was given.
    pub headers: Option<Vec<Range<usize>>>,
    in_headers: bool,
}

impl Guard {
    /// For a connection whose preface is still to come.
    pub fn new(rates: &Rates, now_ms: u64) -> Guard {
        Guard {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
            resets: Bucket::new(rates.resets, now_ms),
            settings: Bucket::new(rates.settings, now_ms),
            idle: Bucket::new(rates.idle, now_ms),
            ping_min_ms: u64::try_from(rates.ping_min.as_millis()).unwrap_or(u64::MAX),
            ping_last_ms: None,
            ping_strikes: 0,
            reset: Vec::new(),
            last_stream: 0,
            frames: 0,
            greeted: false,
            headers: None,
            in_headers: false,
        }
    }

    /// The server has sent headers or data: pings up to now were not idle ones (grpc-go's rule; a
    /// client pings to measure the path while data flows).
    pub fn sent(&mut self) {
        self.ping_strikes = 0;
        self.ping_last_ms = None;
    }

    /// Reads what came, in any pieces. `busy`: the connection has calls.
    pub fn scan(&mut self, mut data: &[u8], now_ms: u64, busy: bool) -> Result<(), Flood> {
        let len = data.len();
        loop {
            if self.skip > 0 {
                let part = self.skip.min(data.len());
                if self.in_headers
                    && let Some(headers) = &mut self.headers
                {
                    let at = len - data.len();
                    headers.push(at..at + part);
                }
                self.skip -= part;
                data = data.get(part..).unwrap_or_default();
            }
            if data.is_empty() {
                return Ok(());
            }
            let head = if self.have == 0
                && let Some((head, rest)) = data.split_first_chunk::<HEAD_BYTES>()
            {
                data = rest;
                *head
            } else {
                let part = (HEAD_BYTES - self.have).min(data.len());
                let (new, rest) = data.split_at_checked(part).unwrap_or_default();
                for (to, from) in self.head.iter_mut().skip(self.have).zip(new) {
                    *to = *from;
                }
                data = rest;
                self.have += part;
                if self.have < HEAD_BYTES {
                    return Ok(());
                }
                self.have = 0;
                self.head
            };
            self.frame(head, now_ms, busy)?;
        }
    }

    fn frame(&mut self, head: [u8; HEAD_BYTES], now_ms: u64, busy: bool) -> Result<(), Flood> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        self.frames += 1;
        self.in_headers = kind == HEADERS;
        match kind {
            DATA | WINDOW_UPDATE | CONTINUATION | PUSH_PROMISE | GOAWAY => Ok(()),
            HEADERS => {
                self.last_stream = self.last_stream.max(stream);
                Ok(())
            }
            RST_STREAM => {
                self.reset.push(stream);
                if self.resets.take(now_ms) { Ok(()) } else { Err(Flood::Resets) }
            }
            SETTINGS => {
                self.greeted = true;
                if self.settings.take(now_ms) { Ok(()) } else { Err(Flood::Settings) }
            }
            PING if flags & ACK == 0 => self.ping(now_ms, busy),
            _ => {
                if self.idle.take(now_ms) {
                    Ok(())
                } else {
                    Err(Flood::Idle)
                }
            }
        }
    }

    fn ping(&mut self, now_ms: u64, busy: bool) -> Result<(), Flood> {
        let least = if busy { self.ping_min_ms } else { PING_MIN_IDLE_MS.max(self.ping_min_ms) };
        let soon = self.ping_last_ms.is_some_and(|last| now_ms < last.saturating_add(least));
        self.ping_last_ms = Some(now_ms);
        if soon {
            self.ping_strikes += 1;
            if self.ping_strikes > PING_STRIKES_MAX {
                return Err(Flood::Pings);
            }
        }
        Ok(())
    }
}

/// Makes a socket's path fit to be an authority.
///
/// gRPC core names its peer on a unix socket by its percent-encoded path, and h2 takes no percent
/// sign there. Nobody looks at the authority, so they are written over where they stand: the value
/// keeps its length, and a header value cannot hold the line feed that the name is told by. Only
/// for plain literals, which is how core sends them.
pub fn mend_authority(block: &mut [u8]) {
    const NAME: &[u8] = b"\x0a:authority";
    let Some(at) = block.windows(NAME.len()).position(|window| window == NAME) else { return };
    if let Some((len, rest)) = block.get_mut(at + NAME.len()..).and_then(<[u8]>::split_first_mut)
        && *len < 127
        && let Some(value) = rest.get_mut(..usize::from(*len))
    {
        for byte in value.iter_mut().filter(|byte| **byte == b'%') {
            *byte = b'-';
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, len: usize) -> Vec<u8> {
        let mut out = (len as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(vec![0xff; len]);
        out
    }

    fn greeted() -> Guard {
        let mut guard = Guard::new(&Rates::default(), 0);
        guard.scan(&[0; PREFACE_BYTES], 0, false).unwrap();
        guard
    }

    #[test]
    fn finds_every_frame_however_the_bytes_are_cut() {
        let mut bytes = vec![0; PREFACE_BYTES];
        bytes.extend(frame(SETTINGS, 0, 0, 12));
        for n in 0..10u32 {
            bytes.extend(frame(HEADERS, 4, 2 * n + 1, 30 + n as usize));
            bytes.extend(frame(DATA, 1, 2 * n + 1, 100 * n as usize));
            bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, 4));
        }
        for step in 1..bytes.len() {
            let mut guard = Guard::new(&Rates::default(), 0);
            for part in bytes.chunks(step) {
                guard.scan(part, 0, true).unwrap();
            }
            assert_eq!(guard.frames, 31);
            assert_eq!(guard.reset, (0..10).map(|n| 2 * n + 1).collect::<Vec<_>>());
            assert_eq!(guard.last_stream, 19);
            assert!(guard.greeted);
        }
    }

    #[test]
    fn pings_follow_the_rule_of_grpc_go() {
        let ping = frame(PING, 0, 0, 8);
        // With calls: one each five seconds.
        let mut guard = greeted();
        for n in 0..100 {
            guard.scan(&ping, n * 5000, true).unwrap();
        }
        // Without: hours. Three too many end it.
        let mut guard = greeted();
        for n in 0..3 {
            guard.scan(&ping, n * 5000, false).unwrap();
        }
        assert_eq!(guard.scan(&ping, 20_000, false), Err(Flood::Pings));
        // Data in between makes them honest.
        let mut guard = greeted();
        for n in 0..100 {
            guard.scan(&ping, n, true).unwrap();
            guard.sent();
        }
        // Acknowledgements are not pings, but they are bounded too.
        let mut guard = greeted();
        let ack = frame(PING, ACK, 0, 8);
        assert_eq!((0..2000).find_map(|_| guard.scan(&ack, 0, true).err()), Some(Flood::Idle));
    }

    #[test]
    fn floods_end_and_slow_rates_do_not() {
        for (kind, flood, burst) in [
            (RST_STREAM, Flood::Resets, 10_000u64),
            (SETTINGS, Flood::Settings, 100),
            (2, Flood::Idle, 1000),
            (200, Flood::Idle, 1000),
        ] {
            let one = frame(kind, 0, 1, 4);
            let mut guard = greeted();
            let count = (0..20_000u64).find(|_| guard.scan(&one, 0, true).is_err());
            assert_eq!(count, Some(burst));
            let mut guard = greeted();
            for n in 0..20_000 {
                guard.scan(&one, n * 100, true).unwrap();
            }
            assert_eq!(guard.scan(&one, 0, true).err().unwrap_or(flood), flood);
        }
    }

    #[test]
    fn an_authority_is_mended_in_header_blocks_only() {
        let block = b"@\x05:path\x02/%@\x0a:authority\x05tmp%2@\x01x\x01%";
        let mut bytes = vec![0; PREFACE_BYTES];
        for kind in [DATA, HEADERS] {
            let head = frame(kind, 4, 1, block.len());
            bytes.extend(&head[..HEAD_BYTES]);
            bytes.extend(block);
        }
        let mut guard = Guard::new(&Rates::default(), 0);
        guard.headers = Some(Vec::new());
        guard.scan(&bytes, 0, true).unwrap();
        let spans = guard.headers.take().unwrap();
        let start = bytes.len() - block.len();
        assert_eq!(spans, std::slice::from_ref(&(start..bytes.len())));
        mend_authority(&mut bytes[start..]);
        assert_eq!(&bytes[start..], b"@\x05:path\x02/%@\x0a:authority\x05tmp-2@\x01x\x01%");
        for cut in 0..block.len() {
            mend_authority(&mut block.to_vec()[..cut]);
        }
    }
}

//! What gRPC puts into HTTP/2: message framing, deadlines, status texts. Pure functions over bytes.
//!
//! The texts are grpc-go's, since those are what etcd's clients see from etcd.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

/// A gRPC status other than OK, or OK with an empty text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code's number on the wire.
    pub code: u8,
    /// The text, not yet percent-encoded.
    pub message: Cow<'static, str>,
}

/// gRPC status codes that the door itself gives.
pub mod code {
    #![allow(missing_docs)]
    pub const OK: u8 = 0;
    pub const UNKNOWN: u8 = 2;
    pub const INVALID_ARGUMENT: u8 = 3;
    pub const DEADLINE_EXCEEDED: u8 = 4;
    pub const RESOURCE_EXHAUSTED: u8 = 8;
    pub const UNIMPLEMENTED: u8 = 12;
    pub const INTERNAL: u8 = 13;
    pub const UNAVAILABLE: u8 = 14;
}

impl Status {
    /// The status of success.
    pub const OK: Status = Status { code: code::OK, message: Cow::Borrowed("") };

    /// A status with a text that is known in advance.
    pub const fn fixed(code: u8, message: &'static str) -> Status {
        Status { code, message: Cow::Borrowed(message) }
    }

    /// A status with a text made for the occasion.
    pub fn new(code: u8, message: String) -> Status {
        Status { code, message: Cow::Owned(message) }
    }
}

/// A unary call ended without a request. grpc-go has no words of its own for it.
pub const NO_REQUEST_UNARY: Status = Status::fixed(code::UNKNOWN, "EOF");
/// A unary call ended inside of its request.
pub const CUT_SHORT_UNARY: Status = Status::fixed(code::UNKNOWN, "unexpected EOF");
/// A stream that wants one request ended without it.
pub const NO_REQUEST: Status = Status::fixed(
    code::INTERNAL,
    "cardinality violation: received no request message from non-client-streaming RPC",
);
/// Such a stream carries more than its one request.
pub const MANY_REQUESTS: Status = Status::fixed(
    code::INTERNAL,
    "cardinality violation: received multiple request messages for non-client-streaming RPC",
);
/// A stream ended inside of a message.
pub const CUT_SHORT: Status = Status::fixed(code::INTERNAL, "unexpected EOF");
/// An answer whose length has no place in its prefix.
pub const ANSWER_TOO_LONG: Status =
    Status::fixed(code::RESOURCE_EXHAUSTED, "grpc: the answer is longer than a message may be");
/// What grpc-go makes of a context whose time is up.
pub const DEADLINE: Status = Status::fixed(code::DEADLINE_EXCEEDED, "context deadline exceeded");

/// Bytes before each message: a flag and the length.
pub const PREFIX_BYTES: usize = 5;
/// A message's buffer starts no larger than this, whatever length it announces.
const FIRST_BUFFER_BYTES: usize = 64 << 10;

/// The prefix of an uncompressed message.
pub fn prefix(len: usize) -> Option<[u8; PREFIX_BYTES]> {
    let [a, b, c, d] = u32::try_from(len).ok()?.to_be_bytes();
    Some([0, a, b, c, d])
}

fn check_prefix(head: [u8; PREFIX_BYTES], limit: usize) -> Result<usize, Status> {
    let [flag, a, b, c, d] = head;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len > limit {
        let text = format!("grpc: received message larger than max ({len} vs. {limit})");
        return Err(Status::new(code::RESOURCE_EXHAUSTED, text));
    }
    match flag {
        0 => Ok(len),
        1 => Err(Status::fixed(
            code::INTERNAL,
            "grpc: compressed flag set with identity or empty encoding",
        )),
        other => Err(Status::new(
            code::INTERNAL,
            format!("grpc: received unexpected payload format {other}"),
        )),
    }
}

/// Cuts a body into messages. Refuses a message by its prefix, before any of it is kept.
#[derive(Default)]
pub struct Decoder {
    head: BytesMut,
    body: BytesMut,
    /// Length of the message whose prefix was read.
    want: Option<usize>,
}

impl Decoder {
    /// Takes a part of the body; whole messages in it go to `out`. After an error it is spent.
    pub fn push(
        &mut self,
        mut data: Bytes,
        limit: usize,
        out: &mut Vec<Bytes>,
    ) -> Result<(), Status> {
        loop {
            let want = match self.want {
                Some(want) => want,
                None => match self.prefix(&mut data) {
                    Some(head) => *self.want.insert(check_prefix(head, limit)?),
                    None => return Ok(()),
                },
            };
            if self.body.is_empty() && data.len() >= want {
                // The usual case: the message lies in one frame and is not copied.
                out.push(data.split_to(want));
                self.want = None;
                continue;
            }
            if self.body.capacity() == 0 {
                self.body.reserve(want.min(FIRST_BUFFER_BYTES));
            }
            let part = (want - self.body.len()).min(data.len());
            self.body.extend_from_slice(&data.split_to(part));
            if self.body.len() < want {
                return Ok(());
            }
            out.push(std::mem::take(&mut self.body).freeze());
            self.want = None;
        }
    }

    /// Five bytes, once they are all there.
    fn prefix(&mut self, data: &mut Bytes) -> Option<[u8; PREFIX_BYTES]> {
        if self.head.is_empty()
            && let Some(head) = data.first_chunk::<PREFIX_BYTES>()
        {
            let head = *head;
            data.advance(PREFIX_BYTES);
            return Some(head);
        }
        let part = (PREFIX_BYTES - self.head.len()).min(data.len());
        self.head.extend_from_slice(&data.split_to(part));
        let head = *self.head.first_chunk::<PREFIX_BYTES>()?;
        self.head.clear();
        Some(head)
    }

    /// True behind a prefix and before the end of its message. Half a prefix is nothing, as for
    /// grpc-go.
    pub fn is_inside(&self) -> bool {
        self.want.is_some()
    }

    /// Bytes of an unfinished message that are kept.
    pub fn held_bytes(&self) -> usize {
        self.body.len()
    }
}

/// Reads a `grpc-timeout`. The error is grpc-go's text.
pub fn timeout(value: &[u8]) -> Result<Duration, String> {
    let shown = || String::from_utf8_lossy(value).into_owned();
    if value.len() < 2 {
        return Err(format!("transport: timeout string is too short: {:?}", shown()));
    }
    if value.len() > 9 {
        return Err(format!("transport: timeout string is too long: {:?}", shown()));
    }
    let Some((unit, digits)) = value.split_last() else {
        return Err(String::new());
    };
    let unit_ns: u64 = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return Err(format!("transport: timeout unit is not recognized: {:?}", shown())),
    };
    let mut number: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            let text = String::from_utf8_lossy(digits).into_owned();
            return Err(format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
        }
        // Eight digits at most: no overflow.
        number = number * 10 + u64::from(digit - b'0');
    }
    Ok(Duration::from_nanos(number.saturating_mul(unit_ns)))
}

/// Encodes a `grpc-message`: all but printable ASCII, and the percent sign, as %XX.
pub fn percent_encode(text: &str) -> Cow<'_, [u8]> {
    let plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'%';
    if text.bytes().all(|byte| plain(&byte)) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(&byte) {
            out.push(byte);
        } else {
            let hex = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 };
            out.extend_from_slice(&[b'%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    Cow::Owned(out)
}

/// Whether a content type is gRPC's ("application/grpc", with a subtype or parameters).
pub fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => *next == b'+' || *next == b';',
        None => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut out = prefix(message.len()).unwrap().to_vec();
        out.extend_from_slice(message);
        out
    }

    #[test]
    fn messages_come_out_however_the_body_is_cut() {
        let messages: Vec<Vec<u8>> = vec![vec![], b"a".to_vec(), vec![7; 300], vec![], vec![9; 5]];
        let body: Vec<u8> = messages.iter().flat_map(|m| framed(m)).collect();
        for step in 1..=body.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for part in body.chunks(step) {
                decoder.push(Bytes::copy_from_slice(part), 300, &mut out).unwrap();
            }
            assert!(!decoder.is_inside());
            assert_eq!(out, messages, "cut every {step} bytes");
        }
    }

    #[test]
    fn a_message_is_refused_by_its_prefix() {
        let refuse = |head: &[u8]| {
            Decoder::default().push(Bytes::copy_from_slice(head), 100, &mut Vec::new()).unwrap_err()
        };
        assert_eq!(
            refuse(&[0, 0, 0, 0, 101]).message,
            "grpc: received message larger than max (101 vs. 100)"
        );
        assert_eq!(refuse(&[1, 0xff, 0xff, 0xff, 0xff]).code, code::RESOURCE_EXHAUSTED);
        assert_eq!(refuse(&[1, 0, 0, 0, 1]).code, code::INTERNAL);
        assert_eq!(refuse(&[7, 0, 0, 0, 1]).message, "grpc: received unexpected payload format 7");
    }

    #[test]
    fn a_length_alone_reserves_little() {
        let mut decoder = Decoder::default();
        let head = Bytes::copy_from_slice(&prefix(1 << 30).unwrap());
        decoder.push(head, 1 << 31, &mut Vec::new()).unwrap();
        assert!(decoder.body.capacity() <= FIRST_BUFFER_BYTES);
        assert!(decoder.is_inside());
    }

    #[test]
    fn timeouts_are_read_as_in_grpc_go() {
        assert_eq!(timeout(b"5S").unwrap(), Duration::from_secs(5));
        assert_eq!(timeout(b"99999999n").unwrap(), Duration::from_nanos(99_999_999));
        assert_eq!(timeout(b"250m").unwrap(), Duration::from_millis(250));
        assert!(timeout(b"99999999H").unwrap() > Duration::from_secs(1 << 32));
        for bad in [&b"S"[..], b"", b"1", b"zz", b"-1S", b"1s", b"123456789S", b"\xff\xffS"] {
            assert!(timeout(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_percent_encoded() {
        assert_eq!(&*percent_encode("plain ~"), b"plain ~");
        assert_eq!(&*percent_encode("ä\n%"), b"%C3%A4%0A%25");
    }

    #[test]
    fn content_types() {
        for yes in [&b"application/grpc"[..], b"application/grpc+proto", b"application/grpc;x=1"] {
            assert!(is_grpc(yes));
        }
        for no in [&b"application/grpcx"[..], b"application/json", b"", b"application/grp"] {
            assert!(!is_grpc(no));
        }
    }
}

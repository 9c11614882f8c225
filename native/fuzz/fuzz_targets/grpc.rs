//! gRPC's framing, deadlines and texts.

#![no_main]

use bytes::Bytes;
use jotd_door::grpc::{Decoder, Status, is_grpc, percent_encode, timeout};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1000;

fn decoded(parts: &[&[u8]]) -> (Vec<Bytes>, Result<bool, Status>) {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    for part in parts {
        if let Err(status) = decoder.push(Bytes::copy_from_slice(part), LIMIT, &mut out) {
            return (out, Err(status));
        }
        assert!(decoder.held_bytes() <= LIMIT);
    }
    (out, Ok(decoder.is_inside()))
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((byte, behind)) = rest.split_first() {
        if *byte == b'%' {
            let (hex, behind) = behind.split_at(2);
            out.push(u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap());
            rest = behind;
        } else {
            out.push(*byte);
            rest = behind;
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let whole = decoded(&[data]);
    let parts: Vec<&[u8]> = data.chunks(usize::from(*cut) + 1).collect();
    assert_eq!(decoded(&parts), whole);
    assert!(whole.0.iter().all(|message| message.len() <= LIMIT));

    let _ = is_grpc(data);
    if let Ok(found) = timeout(data) {
        assert!((2..=9).contains(&data.len()) && found.as_nanos() < u128::MAX);
    }
    let text = String::from_utf8_lossy(data);
    let encoded = percent_encode(&text);
    assert!(encoded.iter().all(|byte| (b' '..=b'~').contains(byte)));
    assert_eq!(percent_decoded(&encoded), text.as_bytes());
});

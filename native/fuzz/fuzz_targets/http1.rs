//! The head of an HTTP/1.1 request: what is whole stays so with more behind it.

#![no_main]

use std::sync::Arc;

use jotd_door::http1::{Head, head};
use jotd_door::queue::Peer;
use libfuzzer_sys::fuzz_target;

const HEAD_MAX: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let peer = Arc::new(Peer::default());
    match head(data, &peer, HEAD_MAX) {
        Head::Partial => assert!(data.len() <= HEAD_MAX),
        Head::Bad(status, _) => assert!((400..600).contains(&status)),
        Head::Whole(whole) => {
            assert!(whole.at <= data.len() && whole.at <= HEAD_MAX);
            assert!(whole.length <= 64 << 10);
            let alone = data.get(..whole.at).unwrap_or_default();
            let Head::Whole(again) = head(alone, &peer, HEAD_MAX) else {
                panic!("whole only with what is behind it")
            };
            assert_eq!((again.at, again.length, again.keep), (whole.at, whole.length, whole.keep));
            for (name, value) in &whole.request.headers {
                assert!(!name.is_empty() && !value.contains('\n'));
            }
        }
    }
});

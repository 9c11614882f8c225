//! The guard sees the same frames however the bytes are cut, and mends authorities in place.

#![no_main]

use jotd_door::guard::{Guard, Rates, mend_authority};
use libfuzzer_sys::fuzz_target;

fn seen(parts: &[&[u8]], times: &[u64]) -> (Vec<u32>, u32, u64, bool, bool) {
    let mut guard = Guard::new(&Rates::default(), 0);
    guard.headers = Some(Vec::new());
    let mut flood = false;
    for (part, time) in parts.iter().zip(times) {
        if guard.scan(part, *time, false).is_err() {
            flood = true;
            break;
        }
        for span in guard.headers.iter_mut().flat_map(|spans| spans.drain(..)) {
            assert!(span.start <= span.end && span.end <= part.len());
        }
    }
    (guard.reset.clone(), guard.last_stream, guard.frames, guard.greeted, flood)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[cut, time], data)) = data.split_first_chunk::<2>() else { return };
    // Clocks may stand still, or jump.
    let time = u64::MAX >> (time % 64);
    let whole = seen(&[data], &[time]);
    let parts: Vec<&[u8]> = data.chunks(usize::from(cut) + 1).collect();
    assert_eq!(seen(&parts, &vec![time; parts.len()]), whole);
    let mut block = data.to_vec();
    mend_authority(&mut block);
    assert_eq!(block.len(), data.len());
});

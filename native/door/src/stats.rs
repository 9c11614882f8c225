//! What the door counts: each limit that it keeps itself, and at which it refuses or ends something,
//! has a number here that says how often it was met. There is none of streams beyond
//! `streams_max`, which h2 refuses without a word, and of HTTP bodies that are too long (413).

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals since the start, and a few levels (`*_open`). Written by the door's thread.
        #[derive(Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Stats {
            /// All of them, by name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections_total,
    /// Connections open.
    connections_open,
    /// Connections closed at once because there were too many.
    connections_refused_total,
    /// Connections that did not finish their greeting (TLS, HTTP/2 preface) in time.
    handshake_timeouts_total,
    /// Connections whose greeting was wrong: TLS failed, or it was no HTTP.
    handshake_failures_total,
    /// Connections that did not answer a keep-alive ping in time.
    keepalive_timeouts_total,
    /// Connections ended by an error, the peer's or the network's.
    connection_errors_total,
    /// Connections ended for resetting streams too fast.
    reset_floods_total,
    /// Connections ended for pinging too often.
    ping_floods_total,
    /// Connections ended for too many SETTINGS frames.
    settings_floods_total,
    /// Connections ended for too many frames without use.
    idle_floods_total,
    /// Connections that h2 ended to be left in peace (its limits on resets, header blocks, frames).
    calm_total,
    /// Frames received.
    frames_total,
    /// Bytes received.
    received_bytes_total,
    /// Bytes sent.
    sent_bytes_total,
    /// Reads from sockets.
    reads_total,
    /// Writes to sockets.
    writes_total,
    /// Unary calls handed over.
    calls_total,
    /// Streams handed over.
    streams_total,
    /// Calls and streams that are open.
    live_open,
    /// HTTP requests that are not gRPC.
    http_total,
    /// Calls and streams that the client gave up.
    cancelled_total,
    /// Calls and streams whose deadline passed.
    deadlines_total,
    /// Messages refused for their size.
    oversize_total,
    /// Calls refused for how they are made: method, content type, encoding, framing, deadline.
    malformed_total,
    /// Calls refused because too much of unfinished requests is held already.
    held_refused_total,
    /// Times that reading stopped because Python had too much to do.
    inbox_full_total,
    /// Times that a connection was not served because it took no answers.
    unsent_full_total,
    /// Times that the Python side was woken.
    wakes_total,
    /// Batches of answers taken.
    outbox_batches_total,
}

impl Stats {
    /// One more.
    pub fn count(counter: &AtomicU64) {
        Stats::add(counter, 1);
    }

    /// Some more. All writers of one counter run on one thread, so this need not be atomic.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

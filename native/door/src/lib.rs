//! The engine of jotd's native front door: it terminates HTTP/2 and gRPC on a thread of its own,
//! and hands requests over in batches. It knows nothing of Python.
//!
//! One thread runs everything here ([`server`]): each connection is a task that does its work in
//! *turns* (`conn`), reading what has come and writing what can be answered in one system call each
//! (`wire`). Complete requests go to a queue ([`queue`]); answers come back through another and are
//! carried out on the calls' entries in one table (`live`).

#![warn(missing_docs)]

mod conn;
pub mod data;
pub mod grpc;
pub mod guard;
#[doc(hidden)]
pub mod http1;
mod live;
pub mod options;
pub mod queue;
pub mod server;
mod socket;
pub mod stats;
mod tls;
pub mod wheel;
mod wire;
mod world;

pub use options::{Kind, Limits, Listen, Options, Place, Tls};
pub use server::Door;

//! Load for etcd v3 endpoints, from one thread as a rule, that costs little CPU itself: on a small
//! machine the load shares the processor with what it measures.

#![warn(missing_docs)]

pub mod conn;
pub mod hist;
pub mod hpack;
mod kube;
pub mod options;
pub mod run;
pub mod scenario;
pub mod wire;

pub use options::Options;
pub use run::{Report, run};

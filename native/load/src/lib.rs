//! Load for etcd v3 endpoints, from one thread as a rule, that costs little CPU itself: on a small
//! machine the load shares the processor with what it measures.

#![warn(missing_docs)]

mod acks;
pub mod conn;
mod driver;
pub mod hist;
pub mod hpack;
mod kube;
mod objects;
pub mod options;
pub mod process;
pub mod report;
pub mod run;
pub mod scenario;
mod setup;
mod standing;
pub mod wire;

pub use options::Options;
pub use report::Report;
pub use run::run;

//! jotd's native front door as a Python module. `jotd_native.pyi` is its contract.

mod call;
mod door;
mod gathered;
mod link;
mod load;
mod writer;

use pyo3::prelude::*;

/// HTTP/2 and gRPC off the interpreter lock, in batches.
#[pymodule]
fn jotd_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("OPENED", door::OPENED)?;
    module.add("MESSAGES", door::MESSAGES)?;
    module.add("HALF_CLOSED", door::HALF_CLOSED)?;
    module.add("ROOM", door::ROOM)?;
    module.add("CLOSED", door::CLOSED)?;
    module.add("UNKNOWN", door::UNKNOWN)?;
    module.add("HTTP", door::HTTP)?;
    module.add("DRAINED", door::DRAINED)?;
    module.add_class::<call::Call>()?;
    module.add_class::<door::Door>()?;
    module.add_class::<call::Exchange>()?;
    module.add_class::<call::Peer>()?;
    module.add_class::<call::Stream>()?;
    module.add_class::<writer::SyncWriter>()?;
    module.add_function(wrap_pyfunction!(load::load, module)?)?;
    Ok(())
}

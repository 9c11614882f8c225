//! The load generator as a function of Python's.

use jotd_load::{Options, run};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Runs a load (options and report are JSON) without the interpreter lock.
#[pyfunction]
#[pyo3(signature = (options, progress = None))]
pub fn load(py: Python<'_>, options: &str, progress: Option<Py<PyAny>>) -> PyResult<String> {
    let options = Options::from_json(options).map_err(PyValueError::new_err)?;
    let mut failed = None;
    let report = py.detach(|| {
        run(&options, &mut |done, part| {
            let Some(progress) = &progress else { return true };
            // What it raises (a keyboard interrupt, say) ends the run.
            failed = Python::attach(|py| progress.call1(py, (done, part)).err());
            failed.is_none()
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let report = report.map_err(PyRuntimeError::new_err)?;
    report.to_json().map_err(PyRuntimeError::new_err)
}

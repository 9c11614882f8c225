//! Unary calls, streams and peers as Python sees them (`kvstore.transport.seam`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use jotd_door::grpc::{PREFIX_BYTES, Status};
use jotd_door::queue::{Command, HttpAnswer, HttpRequest, Key, Meta, Room};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::gathered::Gathered;
use crate::link::{Link, MethodCounts, add, lock, status};

/// Told to the client of a call that Python dropped without an answer.
const DROPPED: Status = Status::fixed(13, "internal error; the server's log has the details");

/// The other end of a call or stream.
#[pyclass(frozen, module = "jotd_native")]
pub struct Peer {
    pub meta: Arc<Meta>,
}

#[pymethods]
impl Peer {
    /// The client's address, for logs; empty for a unix socket.
    #[getter]
    fn address(&self) -> &str {
        &self.meta.peer.address
    }

    /// The common name in the client's certificate.
    #[getter]
    fn common_name(&self) -> Option<&str> {
        self.meta.peer.common_name.as_deref()
    }

    /// All names in the client's certificate.
    #[getter]
    fn certificate_names(&self) -> Vec<String> {
        self.meta.peer.certificate_names.clone()
    }

    /// The first value of a metadata key (lower case), or None.
    fn metadata(&self, key: &str) -> Option<String> {
        self.meta.metadata(key).map(std::borrow::Cow::into_owned)
    }
}

/// One unary call (`seam.Call`).
#[pyclass(frozen, module = "jotd_native")]
pub struct Call {
    pub link: Arc<Link>,
    pub key: Key,
    /// None: a method that does not exist.
    pub meta: Option<Arc<Meta>>,
    #[pyo3(get)]
    pub method: Py<PyString>,
    #[pyo3(get)]
    pub request: Py<PyBytes>,
    pub answered: AtomicBool,
    /// What the answer begins with.
    pub written: Mutex<Option<Gathered>>,
}

impl Call {
    fn counts(&self) -> Option<&MethodCounts> {
        self.link.counts.get(usize::from(self.meta.as_ref()?.method))
    }

    fn count_bytes(&self, count: usize) {
        if let Some(counts) = self.counts() {
            add(&counts.sent_bytes, count as u64);
        }
    }

    fn ended(&self, code: u8) {
        if let Some(counter) = self.counts().and_then(|counts| counts.codes.get(usize::from(code)))
        {
            add(counter, 1);
        }
    }
}

#[pymethods]
impl Call {
    /// Who asks.
    #[getter]
    fn peer(&self) -> Peer {
        Peer { meta: self.meta.clone().unwrap_or_else(|| Arc::new(empty_meta())) }
    }

    /// True once nobody waits for the answer.
    #[getter]
    fn cancelled(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.cancelled.load(Ordering::Relaxed))
    }

    /// Takes parts of an answer that is too long to be one object.
    fn write(&self, parts: &Bound<'_, PyList>) -> PyResult<()> {
        if self.answered.load(Ordering::Relaxed) || self.cancelled() {
            return Ok(());
        }
        let mut written = lock(&self.written);
        let written = written.get_or_insert_with(|| self.link.gathered());
        self.count_bytes(written.add(parts)?);
        Ok(())
    }

    /// Answers with a message: what was written before, and this.
    fn finish(&self, py: Python<'_>, response: &Bound<'_, PyBytes>) {
        if self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(counts) = self.counts() {
            add(&counts.sent, 1);
        }
        self.count_bytes(response.as_bytes().len());
        self.ended(0);
        let command = match lock(&self.written).take() {
            None => Command::Answer(self.key, self.link.message(response)),
            Some(mut written) => {
                written.push(vec![PyBackedBytes::from(response.clone())]);
                Command::AnswerParts(self.key, Box::new(written))
            }
        };
        self.link.push(py, command);
    }

    /// Answers with an error.
    fn fail(&self, py: Python<'_>, code: u8, message: String) {
        if self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        lock(&self.written).take();
        self.ended(code);
        self.link.push(py, Command::Fail(self.key, status(code, message)));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.ended(DROPPED.code);
            self.link.push_now(Command::Fail(self.key, DROPPED));
        }
    }
}

fn empty_meta() -> Meta {
    Meta {
        method: 0,
        peer: Arc::default(),
        headers: Default::default(),
        cancelled: AtomicBool::new(false),
    }
}

/// One open stream (`seam.Stream`).
#[pyclass(frozen, module = "jotd_native")]
pub struct Stream {
    pub link: Arc<Link>,
    pub key: Key,
    pub meta: Arc<Meta>,
    pub queue: Arc<Room>,
    #[pyo3(get)]
    pub method: Py<PyString>,
    pub ended: AtomicBool,
}

#[pymethods]
impl Stream {
    /// Names the stream in events.
    #[getter]
    fn key(&self) -> u64 {
        self.key
    }

    /// Who asks.
    #[getter]
    fn peer(&self) -> Peer {
        Peer { meta: Arc::clone(&self.meta) }
    }

    /// Bytes that may be sent before the client has to catch up.
    #[getter]
    fn room(&self) -> i64 {
        self.queue.left()
    }

    /// True from when there was no room until ROOM tells that there is again.
    #[getter]
    fn full(&self) -> bool {
        self.queue.is_full()
    }

    /// True once `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Lets the client send as many bytes again as messages that were served had.
    fn taken(&self, py: Python<'_>, credit: usize) {
        if credit > 0 {
            self.link.push(py, Command::Taken(self.key, credit));
        }
    }

    /// Queues a message.
    fn send(&self, py: Python<'_>, message: &Bound<'_, PyBytes>) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        if let Some(counts) = self.link.counts.get(usize::from(self.meta.method)) {
            add(&counts.sent, 1);
            add(&counts.sent_bytes, message.as_bytes().len() as u64);
        }
        let message = self.link.stream_message(message);
        let prefix = if message.framed { 0 } else { PREFIX_BYTES };
        self.queue.fill(message.bytes.len() + prefix);
        self.link.push(py, Command::Send(self.key, message));
    }

    /// Ends the stream behind everything sent.
    #[pyo3(signature = (code = 0, message = String::new()))]
    fn close(&self, py: Python<'_>, code: u8, message: String) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.link.push(py, Command::Close(self.key, status(code, message)));
        }
    }
}

/// An HTTP request that is not gRPC, and the place for its answer.
#[pyclass(frozen, module = "jotd_native")]
pub struct Exchange {
    pub link: Arc<Link>,
    pub key: Key,
    pub request: Box<HttpRequest>,
    pub answered: AtomicBool,
}

#[pymethods]
impl Exchange {
    /// GET, ...
    #[getter]
    fn method(&self) -> &str {
        &self.request.method
    }

    /// Path and query, as they came.
    #[getter]
    fn target(&self) -> &str {
        &self.request.target
    }

    /// Names in lower case, and values.
    #[getter]
    fn headers(&self) -> Vec<(String, String)> {
        self.request.headers.clone()
    }

    /// The request's body.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.request.body)
    }

    /// The client's address.
    #[getter]
    fn address(&self) -> &str {
        &self.request.peer.address
    }

    /// Answers.
    fn answer(
        &self,
        py: Python<'_>,
        status: u16,
        headers: Vec<(String, String)>,
        body: &Bound<'_, PyBytes>,
    ) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            let body = self.link.keep(body);
            let bare = self.request.method == "HEAD";
            let answer = Box::new(HttpAnswer { status, headers, body, bare });
            self.link.push(py, Command::Http(self.key, answer));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            let (headers, body) = Default::default();
            let answer = Box::new(HttpAnswer { status: 500, headers, body, bare: false });
            self.link.push_now(Command::Http(self.key, answer));
        }
    }
}

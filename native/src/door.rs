//! The door itself as Python sees it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jotd_door::guard::Rates;
use jotd_door::queue::{Command, Event, InCall};
use jotd_door::{Door as Engine, Kind, Limits, Listen, Options, Place, Tls};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::call::{Call, Exchange, Stream};
use crate::link::{Link, add, lock};

/// Kinds of events, as `Door.take` numbers them.
pub const OPENED: u8 = 0;
pub const MESSAGES: u8 = 1;
pub const HALF_CLOSED: u8 = 2;
pub const ROOM: u8 = 3;
pub const CLOSED: u8 = 4;
pub const UNKNOWN: u8 = 5;
pub const HTTP: u8 = 6;
pub const DRAINED: u8 = 7;

/// Memory that `take` uses again.
#[derive(Default)]
struct Taken {
    calls: Vec<InCall>,
    events: Vec<Event>,
}

/// A running front door.
#[pyclass(frozen, module = "jotd_native")]
pub struct Door {
    engine: Engine,
    link: Arc<Link>,
    taken: Mutex<Taken>,
}

fn place(name: &str, host: &str, port: u16) -> PyResult<Place> {
    match name {
        "unix" => Ok(Place::Unix(host.into())),
        "tcp" => {
            let ip: IpAddr = host
                .parse()
                .map_err(|_| PyValueError::new_err(format!("{host:?} is not an IP address")))?;
            Ok(Place::Tcp(SocketAddr::new(ip, port)))
        }
        other => Err(PyValueError::new_err(format!("{other:?} is neither tcp nor unix"))),
    }
}

fn kind(name: &str) -> PyResult<Kind> {
    match name {
        "unary" => Ok(Kind::Unary),
        "server_stream" => Ok(Kind::ServerStream),
        "bidi_stream" => Ok(Kind::BidiStream),
        other => Err(PyValueError::new_err(format!("there is no kind {other:?}"))),
    }
}

/// The operating system's words, without Rust's number behind them.
fn start_error(listen: &Listen, why: &io::Error) -> PyErr {
    let where_ = match &listen.place {
        Place::Tcp(address) => format!("tcp {address}"),
        Place::Unix(path) => format!("unix {}", path.display()),
    };
    let text = why.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    match why.raw_os_error() {
        Some(number) => PyOSError::new_err((number, format!("listen {where_}: bind: {text}"))),
        None => PyValueError::new_err(why.to_string()),
    }
}

/// How long: None for never.
fn seconds(value: f64) -> Option<Duration> {
    if value > 0.0 { Duration::try_from_secs_f64(value).ok() } else { None }
}

type Address = (String, String, u16, bool);
type Pem = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

#[pymethods]
impl Door {
    /// Binds all addresses and starts to serve. Raises OSError when one cannot be bound.
    #[new]
    #[pyo3(signature = (
        listen, methods, *, tls = None, request_bytes_max, streams_max = 0,
        header_bytes_max = 16384, room_bytes = 1048576, connections_max = 0,
        handshake_max_s = 10.0, keepalive_min_time_s = 5.0, keepalive_interval_s = 7200.0,
        keepalive_timeout_s = 20.0,
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        listen: Vec<Address>,
        methods: Vec<(String, String)>,
        tls: Option<Pem>,
        request_bytes_max: usize,
        streams_max: u32,
        header_bytes_max: u32,
        room_bytes: usize,
        connections_max: usize,
        handshake_max_s: f64,
        keepalive_min_time_s: f64,
        keepalive_interval_s: f64,
        keepalive_timeout_s: f64,
    ) -> PyResult<Door> {
        let defaults = Limits::default();
        let limits = Limits {
            request_bytes_max,
            streams_max: if streams_max == 0 { u32::MAX >> 1 } else { streams_max },
            header_bytes_max,
            room_bytes,
            connections_max: match connections_max {
                0 => defaults.connections_max,
                n => n,
            },
            handshake_max: seconds(handshake_max_s).unwrap_or(defaults.handshake_max),
            keepalive_interval: seconds(keepalive_interval_s),
            keepalive_timeout: seconds(keepalive_timeout_s).unwrap_or(defaults.keepalive_timeout),
            rates: Rates {
                ping_min: seconds(keepalive_min_time_s).unwrap_or_default(),
                ..Rates::default()
            },
            ..defaults
        };
        let mut places = Vec::with_capacity(listen.len());
        for (name, host, port, secure) in listen {
            places.push(Listen { place: place(&name, &host, port)?, secure });
        }
        let mut known = Vec::with_capacity(methods.len());
        let mut names = Vec::with_capacity(methods.len());
        for (name, kind_name) in methods {
            names.push(PyString::intern(py, &name).unbind());
            known.push((name, kind(&kind_name)?));
        }
        let options = Options {
            listen: places.clone(),
            tls: tls.map(|(cert, key, trusted_ca)| Tls { cert, key, trusted_ca }),
            methods: known,
            limits,
        };
        let engine = Engine::start(options).map_err(|(at, why)| match places.get(at) {
            Some(listen) => start_error(listen, &why),
            None => PyOSError::new_err(why.to_string()),
        })?;
        let link = Arc::new(Link::new(Arc::clone(engine.core()), names));
        Ok(Door { engine, link, taken: Mutex::default() })
    }

    /// The ports in use, in the order of the addresses; 0 for unix sockets.
    #[getter]
    fn ports(&self) -> Vec<u16> {
        let port = |listen: &Listen| match &listen.place {
            Place::Tcp(address) => address.port(),
            Place::Unix(_) => 0,
        };
        self.engine.bound().iter().map(port).collect()
    }

    /// The file descriptor that is readable when there is something to take.
    fn fileno(&self) -> i32 {
        self.engine.signal().as_raw_fd()
    }

    /// What schedules a call of `flush` on the loop; None when there is no loop any more.
    fn set_schedule(&self, schedule: Option<Py<PyAny>>) {
        self.link.set_schedule(schedule);
    }

    /// Takes what has come in, at most `max` calls and events each, and no more calls once their
    /// requests are `bytes` long. A turn begins, which `flush` ends. When both are empty, the next to
    /// come makes the file descriptor readable.
    fn take<'py>(
        &self,
        py: Python<'py>,
        max: usize,
        bytes: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.link.begin_turn();
        let mut taken = lock(&self.taken);
        let Taken { calls, events } = &mut *taken;
        let found = PyList::empty(py);
        let happened = PyList::empty(py);
        loop {
            self.engine.take(max, bytes, calls, events);
            let nothing = calls.is_empty() && events.is_empty();
            for call in calls.drain(..) {
                if let Some(call) = self.call(py, call) {
                    found.append(Bound::new(py, call)?)?;
                }
            }
            for event in events.drain(..) {
                if let Some(event) = self.event(py, event)? {
                    happened.append(event)?;
                }
            }
            // Cancelled calls are not shown, and the door arms its signal only when it is empty.
            if nothing || !found.is_empty() || !happened.is_empty() {
                return (found, happened).into_pyobject(py);
            }
        }
    }

    /// Has the door see all answers given so far.
    fn flush(&self, py: Python<'_>) {
        self.link.flush();
        self.link.tidy(py);
    }

    /// Takes no new connection and tells clients to go elsewhere; DRAINED comes when all is done.
    fn drain(&self) {
        self.link.push_now(Command::Drain);
    }

    /// Closes everything.
    fn stop(&self, py: Python<'_>) {
        self.link.set_schedule(None);
        py.detach(|| self.engine.stop());
        self.link.flush();
        self.link.forget();
    }

    /// Counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for (name, value) in self.engine.core().stats.all() {
            found.set_item(name, value)?;
        }
        Ok(found)
    }

    /// Totals of unary calls by method: started, received, received bytes, sent, sent bytes, and
    /// ended by status code.
    #[allow(clippy::type_complexity)]
    fn counts(&self, py: Python<'_>) -> Vec<(Py<PyString>, [u64; 5], Vec<u64>)> {
        let methods = self.link.methods.iter().zip(&self.link.counts);
        methods
            .map(|(name, c)| {
                let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
                let totals = [&c.started, &c.received, &c.received_bytes, &c.sent, &c.sent_bytes];
                (name.clone_ref(py), totals.map(read), c.codes.iter().map(read).collect())
            })
            .collect()
    }
}

impl Door {
    /// The call for Python; None if nobody waits for its answer.
    fn call(&self, py: Python<'_>, call: InCall) -> Option<Call> {
        let InCall { key, meta, request } = call;
        let at = usize::from(meta.method);
        let counts = self.link.counts.get(at)?;
        add(&counts.started, 1);
        add(&counts.received, 1);
        add(&counts.received_bytes, request.len() as u64);
        if meta.cancelled.load(Ordering::Relaxed) {
            if let Some(cancelled) = counts.codes.get(1) {
                add(cancelled, 1);
            }
            return None;
        }
        Some(Call {
            link: Arc::clone(&self.link),
            key,
            meta: Some(meta),
            method: self.link.methods.get(at)?.clone_ref(py),
            request: PyBytes::new(py, &request).unbind(),
            answered: AtomicBool::new(false),
            written: Mutex::default(),
        })
    }

    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let link = &self.link;
        let none = || py.None().into_bound(py);
        let (kind, key, payload) = match event {
            Event::Opened { key, meta, room } => {
                let Some(method) = link.methods.get(usize::from(meta.method)) else {
                    return Ok(None);
                };
                let stream = Stream {
                    link: Arc::clone(link),
                    key,
                    method: method.clone_ref(py),
                    meta,
                    queue: room,
                    ended: AtomicBool::new(false),
                };
                (OPENED, key, Bound::new(py, stream)?.into_any())
            }
            Event::Messages { key, messages, credit } => {
                let list = PyList::empty(py);
                for message in &messages {
                    list.append(PyBytes::new(py, message))?;
                }
                (MESSAGES, key, (list, credit).into_pyobject(py)?.into_any())
            }
            Event::HalfClosed { key } => (HALF_CLOSED, key, none()),
            Event::Room { key } => (ROOM, key, none()),
            Event::Closed { key } => (CLOSED, key, none()),
            Event::Unknown { key, path } => {
                let call = Call {
                    link: Arc::clone(link),
                    key,
                    meta: None,
                    method: PyString::new(py, &path).unbind(),
                    request: PyBytes::new(py, b"").unbind(),
                    answered: AtomicBool::new(false),
                    written: Mutex::default(),
                };
                (UNKNOWN, key, Bound::new(py, call)?.into_any())
            }
            Event::Http { key, request } => {
                let link = Arc::clone(link);
                let exchange = Exchange { link, key, request, answered: AtomicBool::new(false) };
                (HTTP, key, Bound::new(py, exchange)?.into_any())
            }
            Event::Drained => (DRAINED, 0, none()),
        };
        Ok(Some((kind, key, payload).into_pyobject(py)?))
    }
}

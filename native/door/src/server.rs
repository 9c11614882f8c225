//! The door's thread: listeners, the queue of commands, and the clock.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as Raw, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinHandle as Task, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::conn;
use crate::options::{Listen, Options, Place};
use crate::queue::{Command, Core, Event, InCall, lock};
use crate::socket::Socket;
use crate::stats::Stats;
use crate::tls;
use crate::world::World;

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 1024;
/// After a failed accept (no file descriptors left, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at deadlines, if there are any.
const TICK: Duration = Duration::from_millis(8);
/// Between two looks at connections.
const SWEEP_MS: u64 = 250;
/// A drain is over when nothing was live for this long, whether or not clients hang up.
const DRAINED_MS: u64 = 300;

enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A running door. Dropping it stops it.
pub struct Door {
    core: Arc<Core>,
    bound: Vec<Listen>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// Binds every address and starts the thread. The error has the operating system's number, and
    /// comes with the address's place in the list.
    pub fn start(options: Options) -> Result<Door, (usize, io::Error)> {
        let core = Arc::new(Core::new(options.limits.clone()).map_err(|why| (0, why))?);
        let mut bound = Vec::new();
        let mut listeners = Vec::new();
        for (at, listen) in options.listen.iter().enumerate() {
            let (listener, place) = bind(&listen.place).map_err(|why| (at, why))?;
            bound.push(Listen { place, secure: listen.secure });
            let acceptor = match (&options.tls, listen.secure) {
                (_, false) => None,
                (Some(tls), true) => Some(tls::acceptor(tls).map_err(|why| (at, why))?),
                (None, true) => {
                    let why = io::Error::new(io::ErrorKind::InvalidInput, "no certificate");
                    return Err((at, why));
                }
            };
            listeners.push((listener, acceptor));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|why| (0, why))?;
        let theirs = Arc::clone(&core);
        let thread = thread::Builder::new()
            .name("jotd-door".to_owned())
            .spawn(move || {
                let _alarm = Alarm;
                let world = Rc::new(World::new(theirs, &options));
                LocalSet::new().block_on(&runtime, run(world, listeners));
            })
            .map_err(|why| (0, why))?;
        Ok(Door { core, bound, thread: Mutex::new(Some(thread)) })
    }

    /// The addresses in use, with the ports that the operating system chose.
    pub fn bound(&self) -> &[Listen] {
        &self.bound
    }

    /// The queues.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Readable when there is something to take.
    pub fn signal(&self) -> BorrowedFd<'_> {
        self.core.signal()
    }

    /// See `Core::take`.
    pub fn take(&self, max: usize, bytes: usize, calls: &mut Vec<InCall>, events: &mut Vec<Event>) {
        self.core.take(max, bytes, calls, events);
    }

    /// Closes everything and waits for the thread to end.
    pub fn stop(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            self.core.push(&mut vec![Command::Stop]);
            self.core.wake();
            // Its panic, if it had one, was reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the process if the door's thread panics, or the tasks that it cannot be without: half a
/// server would hang its clients silently. (Of a connection's task a panic ends only that one.)
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

fn bind(place: &Place) -> io::Result<(Listener, Place)> {
    match place {
        Place::Tcp(address) => {
            let raw = Raw::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
            raw.set_reuse_address(true)?;
            raw.bind(&(*address).into())?;
            raw.listen(BACKLOG)?;
            raw.set_nonblocking(true)?;
            let listener = std::net::TcpListener::from(raw);
            let place = Place::Tcp(listener.local_addr()?);
            Ok((Listener::Tcp(listener), place))
        }
        Place::Unix(path) => {
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok((Listener::Unix(listener), Place::Unix(path.clone())))
        }
    }
}

async fn run(world: Rc<World>, listeners: Vec<(Listener, Option<TlsAcceptor>)>) {
    let mut accepting = Vec::new();
    for (listener, acceptor) in listeners {
        accepting.push(spawn_local(listen(Rc::clone(&world), listener, acceptor)));
    }
    spawn_local(tick(Rc::clone(&world)));
    serve_commands(&world, &mut accepting).await;
    // These hold on to connections, which hold on to the world. What is left goes with the tasks.
    drop(world.live.take());
    drop(world.conns.take());
}

/// Carries out what Python wants, until it wants no more.
async fn serve_commands(world: &Rc<World>, accepting: &mut Vec<Task<()>>) {
    let commands = RefCell::new(Vec::new());
    poll_fn(|cx| {
        world.core.set_waker(cx.waker());
        world.touch_clock();
        let mut commands = commands.borrow_mut();
        world.core.commands(&mut commands);
        if !commands.is_empty() {
            Stats::count(&world.core.stats.outbox_batches_total);
        }
        for command in commands.drain(..) {
            match command {
                Command::Stop => return Poll::Ready(()),
                Command::Drain => {
                    world.draining.set(true);
                    for task in accepting.drain(..) {
                        task.abort();
                    }
                    for (_, conn) in world.conns.borrow().iter() {
                        conn.ready.wake_task();
                    }
                }
                other => world.execute(other),
            }
        }
        world.publish();
        world.resume();
        Poll::Pending
    })
    .await;
}

async fn listen(world: Rc<World>, listener: Listener, acceptor: Option<TlsAcceptor>) {
    let _alarm = Alarm;
    enum Accepting {
        Tcp(TcpListener),
        Unix(UnixListener),
    }
    let listener = match listener {
        Listener::Tcp(listener) => TcpListener::from_std(listener).map(Accepting::Tcp),
        Listener::Unix(listener) => UnixListener::from_std(listener).map(Accepting::Unix),
    };
    let Ok(listener) = listener else { return };
    loop {
        let accepted = match &listener {
            Accepting::Tcp(listener) => listener.accept().await.map(|(stream, address)| {
                // It only costs speed if this fails.
                let _ = stream.set_nodelay(true);
                (Socket::Tcp(stream), shown(address))
            }),
            Accepting::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| (Socket::Unix(stream), String::new()))
            }
        };
        let Ok((socket, address)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let stats = &world.core.stats;
        Stats::count(&stats.connections_total);
        if world.open.get() >= world.core.limits.connections_max {
            Stats::count(&stats.connections_refused_total);
            continue;
        }
        let theirs = Rc::clone(&world);
        let acceptor = acceptor.clone();
        spawn_local(async move {
            let open = Open::new(&theirs);
            conn::serve(Rc::clone(&theirs), socket, address, acceptor).await;
            drop(open);
        });
    }
}

fn shown(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            let ip = v6.ip().to_ipv4_mapped().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
            SocketAddr::new(ip.into(), v6.port()).to_string()
        }
        other => other.to_string(),
    }
}

/// Counts a connection as long as it is open.
struct Open<'a>(&'a World);

impl<'a> Open<'a> {
    fn new(world: &'a World) -> Open<'a> {
        let open = Open(world);
        open.set(world.open.get() + 1);
        open
    }

    fn set(&self, count: usize) {
        self.0.open.set(count);
        self.0.core.stats.connections_open.store(count as u64, Ordering::Relaxed);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.set(self.0.open.get() - 1);
    }
}

/// Deadlines, keep-alive, and the end of a drain.
async fn tick(world: Rc<World>) {
    let _alarm = Alarm;
    let swept_at = Cell::new(0);
    let idle_since = Cell::new(None);
    loop {
        if world.wheel.borrow().is_empty() {
            // Either way it is time to look.
            let _ = timeout(Duration::from_millis(SWEEP_MS), world.deadline_set.notified()).await;
        }
        sleep(TICK).await;
        world.touch_clock();
        world.expire();
        let now_ms = world.now_ms();
        if now_ms.saturating_sub(swept_at.get()) >= SWEEP_MS {
            swept_at.set(now_ms);
            sweep(&world);
        }
        if world.draining.get() {
            let parting = world.parting.get() > 0;
            let gone = world.conns.borrow().is_empty();
            let idle = !parting
                && world.live.borrow().is_empty()
                && world.conns.borrow().iter().all(|(_, conn)| conn.wire.borrow().is_sent());
            if !idle {
                idle_since.set(None);
            } else if gone || now_ms - idle_since.get().unwrap_or(now_ms) >= DRAINED_MS {
                world.event(Event::Drained);
            } else if idle_since.get().is_none() {
                idle_since.set(Some(now_ms));
            }
        }
        world.publish();
    }
}

fn sweep(world: &World) {
    let limits = &world.core.limits;
    let now_ms = world.now_ms();
    for (_, conn) in world.conns.borrow().iter() {
        let Ok(wire) = conn.wire.try_borrow() else { continue };
        let silent_ms = now_ms.saturating_sub(wire.read_at_ms);
        let open_ms = now_ms.saturating_sub(wire.opened_at_ms);
        if !wire.guard.greeted && open_ms >= ms(limits.handshake_max) {
            Stats::count(&world.core.stats.handshake_timeouts_total);
            conn.kill.set(true);
            conn.ready.wake_task();
            continue;
        }
        let Some(interval) = limits.keepalive_interval else { continue };
        match conn.pinged_at_ms.get() {
            // Any sign of life will do.
            Some(at) if wire.read_at_ms > at => conn.pinged_at_ms.set(None),
            Some(at) if now_ms.saturating_sub(at) >= ms(limits.keepalive_timeout) => {
                Stats::count(&world.core.stats.keepalive_timeouts_total);
                conn.kill.set(true);
                conn.ready.wake_task();
            }
            Some(_) => {}
            None if silent_ms >= ms(interval) => {
                conn.ping.set(true);
                conn.ready.wake_task();
            }
            None => {}
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

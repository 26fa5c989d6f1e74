//! An emulated device as a network block device on a unix socket, for clients in other processes: fio, nbdcopy, qemu.
//!
//! One thread serves all connections. It spins while something is due soon or a client was just heard, since a sleep would
//! add as much as the transport itself, and sleeps in `poll` otherwise.

mod protocol;
mod socket;

use std::io::{ErrorKind as Kind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub use protocol::{Command, NbdError, REQUEST_BYTES_MAX, Session};
use socket::Socket;

use crate::clock::Clock;
use crate::device::LiveDevice;
use crate::error::{Error, ErrorKind, Result};

/// Connections at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 64;
/// A client that has so much in flight is not read from until it takes its replies.
const OUTSTANDING_BYTES_MAX: usize = 64 << 20;
const OUTSTANDING_MAX: usize = 4096;
/// Sleeping ends so long before a request is due.
const SPIN_MARGIN_NS: u64 = 150_000;
/// A client that was heard so recently is expected to be heard again.
const LINGER_NS: u64 = 200_000;
/// The caller is asked so often whether to go on.
const QUESTION_NS: u64 = 50_000_000;
const READ_BYTES: usize = 256 << 10;
/// One connection gets at most so much before the others have their turn.
const FLUSH_BYTES_MAX: usize = 1 << 20;

/// What became of the connections.
#[derive(Debug, Clone, Default)]
pub struct ServerStats {
    /// Accepted.
    pub connections: u64,
    /// Ended because the client sent what cannot be understood, or because there were too many.
    pub refused: u64,
    /// Why the last of those was.
    pub last_refusal: &'static str,
}

struct Connection {
    stream: UnixStream,
    session: Session,
    /// Requests whose reply is not in the output yet, and the bytes that they hold.
    outstanding: usize,
    outstanding_bytes: usize,
    /// The other end is gone; replies have nobody to go to.
    gone: bool,
}

/// A request in flight, by tag.
struct Pending {
    /// Place among the connections, and which connection of that place.
    connection: usize,
    generation: u64,
    cookie: u64,
    /// What a read gave; or why a write that is in flight is not safe.
    outcome: std::result::Result<Vec<u8>, NbdError>,
}

/// A server that listens.
pub struct NbdServer {
    device: LiveDevice,
    clock: Arc<Clock>,
    socket: Socket,
    connections: Vec<Option<(u64, Connection)>>,
    pending: Vec<Option<Pending>>,
    free_tags: Vec<u32>,
    stats: ServerStats,
    /// Nobody is accepted before this time, since the host could not a moment ago.
    deaf_until_ns: u64,
    input: Vec<u8>,
}

impl NbdServer {
    /// Listens at `path`, which nobody but this user can connect to.
    ///
    /// # Errors
    ///
    /// `Config` if the path is taken or too long; `Io` if the host refuses it.
    pub fn bind(device: LiveDevice, clock: Arc<Clock>, path: &Path) -> Result<Self> {
        if clock.is_virtual() {
            return Err(Error::new(ErrorKind::Config, "a client lives in real time; serve on a wall clock"));
        }
        Ok(Self {
            device,
            clock,
            socket: Socket::bind(path)?,
            connections: Vec::new(),
            pending: Vec::new(),
            free_tags: Vec::new(),
            stats: ServerStats::default(),
            deaf_until_ns: 0,
            input: vec![0; READ_BYTES],
        })
    }

    /// The device that is served.
    pub fn device(&self) -> &LiveDevice {
        &self.device
    }

    /// What became of the connections so far.
    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    /// Serves until `stop` is set or `keep_going` fails; the latter's error is the result then.
    pub fn run(&mut self, stop: &AtomicBool, keep_going: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let (mut heard_ns, mut asked_ns) = (0, self.clock.now_ns());
        let mut ready = Vec::new();
        while !stop.load(Ordering::Acquire) {
            let now_ns = self.clock.now_ns();
            if now_ns - asked_ns > QUESTION_NS {
                asked_ns = now_ns;
                keep_going()?;
            }
            let delivered = self.deliver();
            self.flush();
            self.wait(if delivered { Some(0) } else { self.idle_ns(now_ns, heard_ns) }, &mut ready)?;
            for &place in &ready {
                if self.hear(place) {
                    heard_ns = self.clock.now_ns();
                }
            }
            for place in 0..self.connections.len() {
                self.submit_all(place);
            }
            self.reap();
        }
        Ok(())
    }

    /// How long nothing will happen unless a client speaks: `None` for very long.
    fn idle_ns(&self, now_ns: u64, heard_ns: u64) -> Option<u64> {
        if now_ns < heard_ns + LINGER_NS && self.connections.iter().any(Option::is_some) {
            return Some(0);
        }
        self.device.next_event_ns().map(|due_ns| due_ns.saturating_sub(now_ns).saturating_sub(SPIN_MARGIN_NS))
    }

    /// Hands the replies that are due to their connections.
    fn deliver(&mut self) -> bool {
        let mut delivered = false;
        while let Some(tag) = self.device.poll() {
            delivered = true;
            let Some(pending) = self.pending[tag as usize].take() else { continue };
            self.free_tags.push(tag);
            // Its client may have left.
            if let Some((generation, connection)) = &mut self.connections[pending.connection]
                && *generation == pending.generation
            {
                connection.outstanding -= 1;
                connection.outstanding_bytes -= pending.outcome.as_ref().map_or(0, Vec::len);
                connection.session.reply(pending.cookie, pending.outcome.as_deref().map_err(|&error| error));
            }
        }
        delivered
    }

    fn flush(&mut self) {
        for (_, connection) in self.connections.iter_mut().flatten() {
            connection.flush();
        }
    }

    /// Waits until a socket is ready, at most `idle_ns`; accepts, and notes which connections can be read.
    fn wait(&mut self, idle_ns: Option<u64>, ready: &mut Vec<usize>) -> Result<()> {
        ready.clear();
        let mut places = Vec::with_capacity(self.connections.len());
        let is_deaf = self.clock.now_ns() < self.deaf_until_ns;
        let calls = if is_deaf { PollFlags::empty() } else { PollFlags::IN };
        let mut sockets = vec![PollFd::new(self.socket.listener(), calls)];
        for (place, slot) in self.connections.iter().enumerate() {
            let Some((_, connection)) = slot else { continue };
            let mut wanted = PollFlags::empty();
            if connection.wants_input() {
                wanted |= PollFlags::IN;
            }
            if !connection.session.output().is_empty() {
                wanted |= PollFlags::OUT;
            }
            places.push(place);
            sockets.push(PollFd::new(&connection.stream, wanted));
        }
        let limit_ns = idle_ns.unwrap_or(u64::MAX).min(QUESTION_NS);
        let limit = Timespec { tv_sec: 0, tv_nsec: limit_ns as i64 };
        match poll(&mut sockets, Some(&limit)) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(Error::io("waiting for clients", error.into())),
        }
        let called = !sockets[0].revents().is_empty() && self.clock.now_ns() >= self.deaf_until_ns;
        let heard = sockets[1..].iter().zip(&places).filter(|(socket, _)| {
            socket.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
        });
        ready.extend(heard.map(|(_, &place)| place));
        drop(sockets);
        if called {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.socket.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(_) => {
                    // Most likely this process has no file descriptor left; those who are connected go on.
                    self.refuse("the host could not accept a connection");
                    self.deaf_until_ns = self.clock.now_ns() + QUESTION_NS;
                    return;
                }
            };
            self.stats.connections += 1;
            if self.connections.iter().flatten().count() >= CONNECTIONS_MAX {
                self.refuse("too many connections at once");
                continue;
            }
            let session = Session::new(self.device.len_bytes());
            let connection = Connection { stream, session, outstanding: 0, outstanding_bytes: 0, gone: false };
            let slot = Some((self.stats.connections, connection));
            match self.connections.iter().position(Option::is_none) {
                Some(place) => self.connections[place] = slot,
                None => self.connections.push(slot),
            }
        }
    }

    fn refuse(&mut self, reason: &'static str) {
        self.stats.refused += 1;
        self.stats.last_refusal = reason;
    }

    /// Reads from a connection; whether there was anything.
    fn hear(&mut self, place: usize) -> bool {
        let Some((_, connection)) = &mut self.connections[place] else { return false };
        match connection.stream.read(&mut self.input) {
            Ok(0) => connection.gone = true,
            Ok(nbytes) => connection.session.receive(&self.input[..nbytes]),
            Err(error) if matches!(error.kind(), Kind::WouldBlock | Kind::Interrupted) => {}
            Err(_) => connection.gone = true,
        }
        !connection.gone
    }

    /// Submits what a connection has asked, as far as it may have more in flight.
    fn submit_all(&mut self, place: usize) {
        let Some((generation, mut connection)) = self.connections[place].take() else { return };
        while connection.may_ask()
            && let Some(command) = connection.session.next_command()
        {
            self.submit(place, generation, &mut connection, command);
        }
        self.connections[place] = Some((generation, connection));
    }

    fn submit(&mut self, place: usize, generation: u64, connection: &mut Connection, command: Command) {
        let tag = self.free_tags.pop().unwrap_or(self.pending.len() as u32);
        let (cookie, outcome) = match command {
            Command::Read { cookie, offset, nbytes } => {
                let mut data = vec![0; nbytes as usize];
                (cookie, self.device.read(tag, offset, &mut data).map(|()| Some(Ok(data))))
            }
            Command::Write { cookie, offset, data, force_unit_access } => {
                let written = self.device.write(tag, offset, &data);
                let synced = if force_unit_access { self.device.sync() } else { Ok(()) };
                let synced = synced.map(|()| Vec::new()).map_err(|error| nbd_error(error.kind()));
                (cookie, written.map(|()| Some(synced)))
            }
            Command::Trim { cookie, offset, nbytes, force_unit_access } => {
                let trimmed = self.device.discard(offset, u64::from(nbytes));
                let synced = if force_unit_access { trimmed.and_then(|()| self.device.sync()) } else { trimmed };
                (cookie, synced.map(|()| None))
            }
            Command::Flush { cookie } => (cookie, self.device.sync().map(|()| None)),
        };
        if tag as usize == self.pending.len() {
            self.pending.push(None);
        }
        match outcome {
            Ok(Some(outcome)) => {
                connection.outstanding += 1;
                connection.outstanding_bytes += outcome.as_ref().map_or(0, Vec::len);
                self.pending[tag as usize] = Some(Pending { connection: place, generation, cookie, outcome });
                return;
            }
            Ok(None) => connection.session.reply(cookie, Ok(&[])),
            Err(error) => connection.session.reply(cookie, Err(nbd_error(error.kind()))),
        }
        self.free_tags.push(tag);
    }

    /// Closes what has ended.
    fn reap(&mut self) {
        for place in 0..self.connections.len() {
            let Some((_, connection)) = &mut self.connections[place] else { continue };
            if connection.session.refusal().is_some() {
                // It may hold a word about the reason.
                connection.flush();
            }
            let answered = connection.outstanding == 0 && connection.session.output().is_empty();
            let refusal = connection.session.refusal();
            if connection.gone || refusal.is_some() || (connection.session.is_ending() && answered) {
                self.connections[place] = None;
                if let Some(reason) = refusal {
                    self.refuse(reason);
                }
            }
        }
    }
}

impl Connection {
    /// Writes what the socket takes, and not so much that others wait long for theirs.
    fn flush(&mut self) {
        let mut left = FLUSH_BYTES_MAX;
        while !self.session.output().is_empty() && !self.gone && left > 0 {
            let output = self.session.output();
            match self.stream.write(&output[..output.len().min(left)]) {
                Ok(nbytes) if nbytes > 0 => {
                    self.session.sent(nbytes);
                    left -= nbytes;
                }
                Err(error) if error.kind() == Kind::Interrupted => {}
                Err(error) if error.kind() == Kind::WouldBlock => break,
                _ => self.gone = true,
            }
        }
    }

    fn may_ask(&self) -> bool {
        let held = self.outstanding_bytes + self.session.output().len();
        self.outstanding < OUTSTANDING_MAX && held < OUTSTANDING_BYTES_MAX
    }

    fn wants_input(&self) -> bool {
        !self.session.is_ending() && self.may_ask()
    }
}

fn nbd_error(kind: ErrorKind) -> NbdError {
    match kind {
        ErrorKind::NoSpace => NbdError::NoSpace,
        ErrorKind::Capacity => NbdError::Memory,
        ErrorKind::Input => NbdError::Invalid,
        _ => NbdError::Io,
    }
}

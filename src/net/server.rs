//! The listener of `heliostat serve`: plain TCP on loopback, a thread for each connection.
//!
//! A stranger, a broken client or a failing handler costs one line of log and its own connection; the others and the
//! listener go on. Log lines hold the peer's address and one sentence, never bytes of the peer.

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::channel::{Channel, Control};
use super::error::NetError;
use super::handshake::{Agreed, Versions, refuse, welcome};
use super::meter::{Meter, Role};
use super::tcp::{TcpOptions, require_loopback, tcp_channel};

/// How long a client that is turned away may take to say hello, so that it can be told why.
const TURNED_AWAY: Duration = Duration::from_secs(1);
/// Pause after the system failed to accept a connection, so that a lasting failure does not flood the log.
const ACCEPT_FAILED: Duration = Duration::from_secs(1);

/// Limits of a [`Server`].
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections that are served at once; as many again are told that the server is busy, the rest is cut.
    pub connections: usize,
    /// Time limits of each connection; `read` is the idle timeout.
    pub tcp: TcpOptions,
    /// Time for the handshake.
    pub handshake: Duration,
    /// Time that connections have to finish once a stop is asked for; then they are cut.
    pub grace: Duration,
    /// Protocol versions that are spoken.
    pub versions: Versions,
}

impl Default for ServerOptions {
    /// 16 connections, 10 s for the handshake, 30 s to finish, 10 minutes idle.
    fn default() -> Self {
        Self {
            connections: 16,
            tcp: TcpOptions::default(),
            handshake: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            versions: Versions::CURRENT,
        }
    }
}

/// A client that has been welcomed.
pub struct Connection {
    /// The way to it.
    pub channel: Channel,
    /// Its address.
    pub peer: SocketAddr,
    /// Version and session.
    pub agreed: Agreed,
    /// Counts for the server; the handshake is in it.
    pub meter: Meter,
}

/// A listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: ServerOptions,
    stopping: Arc<AtomicBool>,
}

/// Asks a [`Server`] to stop; clones ask the same one.
#[derive(Debug, Clone)]
pub struct Stop {
    stopping: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Stop {
    /// Asks for the stop: nobody is accepted any more, and [`Server::run`] returns when the connections have finished.
    pub fn request(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener; if that fails it was awake, or is gone.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Server {
    /// Listens at `address` (HOST:PORT, port 0 for any free one), which must be loopback.
    ///
    /// # Errors
    /// [`NetError::Address`], [`NetError::NotLoopback`], [`NetError::PortInUse`], [`NetError::Io`].
    pub fn bind(address: &str, options: ServerOptions) -> Result<Self, NetError> {
        let bad = || NetError::Address { address: address.to_owned() };
        let targets: Vec<SocketAddr> = address.to_socket_addrs().map_err(|_| bad())?.collect();
        targets.iter().try_for_each(|target| require_loopback(*target))?;
        let first = *targets.first().ok_or_else(bad)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => NetError::PortInUse { address: first },
            _ => NetError::io("opening the port", &error, None),
        };
        let listener = TcpListener::bind(first).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, options, stopping: Arc::default() })
    }

    /// The address that is listened at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that stops the server from another thread or a signal handler.
    pub fn stop(&self) -> Stop {
        Stop { stopping: Arc::clone(&self.stopping), address: self.address }
    }

    /// Serves until a stop is asked for: each client that completes the handshake is given to `handle` on a thread of its
    /// own. Each failure is one call of `log` with one line. A handler that is still at work when the time to finish has
    /// passed has its connection cut, and is waited for.
    pub fn run<E: Display>(&self, log: &(dyn Fn(&str) + Sync), handle: &(dyn Fn(Connection) -> Result<(), E> + Sync)) {
        let guests = Guests::default();
        thread::scope(|scope| {
            loop {
                let accepted = self.listener.accept();
                if self.stopping.load(Ordering::SeqCst) {
                    break;
                }
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        log(&format!("cannot accept a connection: {error}"));
                        thread::sleep(ACCEPT_FAILED);
                        continue;
                    }
                };
                let channel = match tcp_channel(stream, &self.options.tcp) {
                    Ok(channel) => channel,
                    Err(error) => {
                        log(&format!("{peer}: {error}"));
                        continue;
                    }
                };
                let Some((guest, place)) = guests.enter(&channel, 2 * self.options.connections) else {
                    log(&format!("{peer}: cut, far too many connections"));
                    continue;
                };
                let serve = move || {
                    let _guest = guest;
                    // The handler's state ends with it, so that nothing half-changed is seen after a panic.
                    let result = catch_unwind(AssertUnwindSafe(|| self.serve(channel, peer, place, handle)));
                    match result {
                        Ok(Ok(())) => {}
                        Ok(Err(sentence)) => log(&format!("{peer}: {sentence}")),
                        Err(_) => log(&format!("{peer}: internal error, the connection was dropped: please report it")),
                    }
                };
                if let Err(error) = thread::Builder::new().name("connection".into()).spawn_scoped(scope, serve) {
                    log(&format!("{peer}: no thread for the connection: {error}"));
                }
            }
            guests.finish(self.options.grace);
        });
    }

    /// One connection from its first byte; the error is the log's line.
    fn serve<E: Display>(
        &self,
        mut channel: Channel,
        peer: SocketAddr,
        place: usize,
        handle: &(dyn Fn(Connection) -> Result<(), E> + Sync),
    ) -> Result<(), String> {
        let meter = Meter::new(Role::Server);
        if place >= self.options.connections {
            let sentence = format!("the server is busy with {} connections: try again later", self.options.connections);
            channel.control.set_deadline(Some(Instant::now() + TURNED_AWAY));
            channel.receiver.set_payload_limit(4096);
            // Its hello is read so that closing does not reset the connection under the sentence.
            if channel.recv().is_ok() {
                refuse(&mut channel, &meter, &sentence);
            }
            return Err(format!("turned away: {sentence}"));
        }
        let agreed = welcome(&mut channel, &meter, self.options.versions, self.options.handshake)
            .map_err(|error| error.to_string())?;
        handle(Connection { channel, peer, agreed, meter }).map_err(|error| error.to_string())
    }
}

/// The connections that are open now.
#[derive(Default)]
struct Guests {
    list: Mutex<GuestList>,
    changed: Condvar,
}

#[derive(Default)]
struct GuestList {
    next: u64,
    open: Vec<(u64, Arc<dyn Control>)>,
}

struct Guest<'a> {
    guests: &'a Guests,
    id: u64,
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, GuestList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection unless there are `limit`; also says how many there were before it.
    fn enter(&self, channel: &Channel, limit: usize) -> Option<(Guest<'_>, usize)> {
        let mut list = self.lock();
        let place = list.open.len();
        if place >= limit {
            return None;
        }
        let id = list.next;
        list.next += 1;
        list.open.push((id, Arc::clone(&channel.control)));
        Some((Guest { guests: self, id }, place))
    }

    /// Waits for the connections to end, and cuts those that have not after `grace`.
    fn finish(&self, grace: Duration) {
        let open = |list: &mut GuestList| !list.open.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), grace, open);
        let (list, _) = waited.unwrap_or_else(PoisonError::into_inner);
        list.open.iter().for_each(|(_, control)| control.close());
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.guests.lock().open.retain(|(id, _)| *id != self.id);
        self.guests.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{FRAME_VERSION, Frame, FrameEncoder};
    use super::super::handshake::greet;
    use super::super::tcp::connect;
    use super::*;
    use std::io::{Read, Write};
    use std::sync::mpsc::{Receiver as LogReceiver, channel as log_channel};

    const LIMIT: Duration = Duration::from_secs(20);

    /// Runs a server that echoes one frame, plays `client` against its address and log, stops it, and checks that nothing
    /// more was logged.
    fn with_server(options: ServerOptions, client: impl FnOnce(&str, &LogReceiver<String>)) {
        let server = Server::bind("127.0.0.1:0", options).unwrap();
        let (address, stop) = (server.address().to_string(), server.stop());
        let (lines, log) = log_channel();
        let running = thread::spawn(move || {
            server.run(&move |line: &str| lines.send(line.to_owned()).unwrap(), &|mut connection: Connection| {
                let frame = connection.channel.recv()?;
                assert_ne!(frame.kind, 13, "a handler that panics");
                connection.channel.send(frame)
            });
        });
        client(&address, &log);
        stop.request();
        running.join().unwrap();
        assert_eq!(log.recv().ok(), None);
    }

    fn greeted(address: &str) -> Result<(Channel, Agreed), NetError> {
        let mut channel = connect(address, &TcpOptions::default())?;
        let agreed = greet(&mut channel, &Meter::new(Role::Client), Versions::CURRENT, LIMIT)?;
        Ok((channel, agreed))
    }

    fn echo(address: &str) {
        let (mut channel, agreed) = greeted(address).unwrap();
        let frame = Frame { lane: 0, kind: 1, session: agreed.session, payload: vec![1; 100_000] };
        channel.send(frame.clone()).unwrap();
        assert_eq!(channel.recv().unwrap(), frame);
    }

    fn next_line(log: &LogReceiver<String>) -> String {
        log.recv_timeout(LIMIT).unwrap()
    }

    #[test]
    fn strangers_cost_one_line_each_and_the_server_goes_on() {
        with_server(ServerOptions::default(), |address, log| {
            for (bytes, words) in [
                (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "it sent an HTTP request"),
                (b"\x16\x03\x01\x02\x00\x01", "it sent a TLS greeting"),
                (&[0xa5; 100_000], "it sent other bytes"),
                (b"HLS\x1a\x01\x00 and then nonsense, long enough for a header and more", "header was corrupted"),
                (b"HLS\x1a\x01\x00 short", "in the middle of a frame"),
                (b"", "connection is closed"),
            ] {
                let mut stream = TcpStream::connect(address).unwrap();
                // The server may have hung up on the first of many bytes.
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
                let line = next_line(log);
                assert!(line.starts_with("127.0.0.1:") && line.contains(words) && !line.contains('\n'), "{line}");
                echo(address);
            }
        });
    }

    #[test]
    fn a_silent_stranger_is_dropped_after_the_handshake_time() {
        let options = ServerOptions { handshake: Duration::from_millis(30), ..ServerOptions::default() };
        with_server(options, |address, log| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"HLS\x1a").unwrap();
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
            assert!(next_line(log).contains("no progress for 0.03 s while waiting for the peer's first message"));
        });
    }

    #[test]
    fn another_frame_format_is_a_sentence_on_both_sides() {
        with_server(ServerOptions::default(), |address, log| {
            let mut wire = Vec::new();
            let frame = Frame { lane: 255, kind: 0xff00, session: [0; 16], payload: vec![] };
            FrameEncoder::new(100).write(&frame, &mut wire).unwrap();
            wire[4] = 77;
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&wire).unwrap();
            assert!(next_line(log).contains("frame format 77 and this program 1"));
            let mut answer = [0; 6];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[4..], FRAME_VERSION.to_le_bytes());
        });
        // The other way about: an old server's frame reaches this release's client.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = thread::spawn(move || listener.accept().unwrap().0.write_all(b"HLS\x1a\x4d\x00").unwrap());
        assert!(matches!(greeted(&address), Err(NetError::FrameVersion { theirs: 77, .. })));
        serving.join().unwrap();
    }

    #[test]
    fn no_common_version_is_logged_and_told() {
        with_server(ServerOptions::default(), |address, log| {
            let mut channel = connect(address, &TcpOptions::default()).unwrap();
            let future = Versions { oldest: 8, newest: 9 };
            let error = greet(&mut channel, &Meter::new(Role::Client), future, LIMIT).unwrap_err();
            assert!(error.to_string().contains("the client speaks 8 to 9 and the server 3"), "{error}");
            assert!(next_line(log).contains("the client speaks 8 to 9"));
        });
    }

    #[test]
    fn too_many_clients_are_told_that_the_server_is_busy() {
        with_server(ServerOptions { connections: 1, ..ServerOptions::default() }, |address, log| {
            let first = greeted(address).unwrap();
            let error = greeted(address).err().unwrap();
            assert!(matches!(&error, NetError::Peer { reason } if reason.contains("busy with 1")), "{error}");
            assert!(next_line(log).contains("turned away"));
            drop(first);
            assert!(next_line(log).contains("the connection is closed"));
            // Its place may be free a moment after its line.
            while greeted(address).is_err() {
                next_line(log);
            }
            next_line(log);
        });
    }

    #[test]
    fn a_client_that_leaves_and_a_handler_that_panics_do_not_end_the_server() {
        with_server(ServerOptions::default(), |address, log| {
            drop(greeted(address).unwrap());
            assert!(next_line(log).contains("closed"));
            let (mut channel, agreed) = greeted(address).unwrap();
            channel.send(Frame { lane: 0, kind: 13, session: agreed.session, payload: vec![] }).unwrap();
            assert!(next_line(log).contains("internal error"));
            assert!(channel.recv().is_err());
            echo(address);
        });
    }

    #[test]
    fn a_stop_cuts_what_is_still_open_after_the_grace() {
        let options = ServerOptions { grace: Duration::from_millis(20), ..ServerOptions::default() };
        let server = Server::bind("127.0.0.1:0", options).unwrap();
        let (address, stop) = (server.address().to_string(), server.stop());
        let (lines, log) = log_channel();
        let running = thread::spawn(move || {
            server.run(&move |line: &str| lines.send(line.to_owned()).unwrap(), &|mut connection: Connection| {
                connection.channel.recv().map(|_| ())
            });
        });
        let (mut channel, _) = greeted(&address).unwrap();
        stop.request();
        running.join().unwrap();
        assert!(channel.recv().is_err());
        assert!(next_line(&log).contains("closed"));
        assert!(matches!(greeted(&address), Err(NetError::Refused { .. })));
    }

    #[test]
    fn addresses_that_cannot_be_listened_at_are_refused_with_a_sentence() {
        let failure = |address: &str| Server::bind(address, ServerOptions::default()).err().unwrap();
        let error = failure("0.0.0.0:0");
        assert!(error.to_string().starts_with("plain TCP is only allowed on loopback"), "{error}");
        assert!(matches!(failure("192.0.2.1:1"), NetError::NotLoopback { .. }));
        assert!(matches!(failure("[::]:0"), NetError::NotLoopback { .. }));
        assert!(matches!(failure("here"), NetError::Address { .. }));
        let taken = Server::bind("127.0.0.1:0", ServerOptions::default()).unwrap();
        let error = failure(&taken.address().to_string());
        assert_eq!(error, NetError::PortInUse { address: taken.address() });
        assert!(error.to_string().contains("already in use"));
    }
}

//! A channel over TCP, and connecting to a server.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::channel::{Channel, Control, Receiver, Sender};
use super::error::NetError;
use super::frame::{DEFAULT_PAYLOAD_LIMIT, Frame, FrameDecoder, FrameEncoder};

const BUFFER: usize = 64 << 10;

/// Time limits of a TCP channel. `None` waits for ever.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// For the connection to come about.
    pub connect: Duration,
    /// For the next bytes of the peer. A peer that works for long without a word must stay within it.
    pub read: Option<Duration>,
    /// For the peer to take bytes.
    pub write: Option<Duration>,
}

impl Default for TcpOptions {
    /// 10 s to connect, 10 minutes without a byte either way.
    fn default() -> Self {
        let silence = Some(Duration::from_secs(600));
        Self { connect: Duration::from_secs(10), read: silence, write: silence }
    }
}

/// Connects to `address` (HOST:PORT), which must be a loopback address because nothing is encrypted.
///
/// # Errors
/// [`NetError::Address`], [`NetError::NotLoopback`], [`NetError::Refused`], [`NetError::Timeout`], [`NetError::Io`].
pub fn connect(address: &str, options: &TcpOptions) -> Result<Channel, NetError> {
    let bad = || NetError::Address { address: address.to_owned() };
    let targets: Vec<SocketAddr> = address.to_socket_addrs().map_err(|_| bad())?.collect();
    let mut failure = bad();
    for target in targets {
        require_loopback(target)?;
        match TcpStream::connect_timeout(&target, options.connect) {
            Ok(stream) => return tcp_channel(stream, options),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                failure = NetError::Refused { address: address.to_owned() };
            }
            Err(e) => failure = NetError::io("connecting", &e, Some(options.connect)),
        }
    }
    Err(failure)
}

/// Fails unless `address` is a loopback address.
///
/// # Errors
/// [`NetError::NotLoopback`].
pub fn require_loopback(address: SocketAddr) -> Result<(), NetError> {
    if address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(NetError::NotLoopback { address }) }
}

/// A channel over a connected stream.
///
/// # Errors
/// [`NetError::Io`] when the stream does not take its settings.
pub fn tcp_channel(stream: TcpStream, options: &TcpOptions) -> Result<Channel, NetError> {
    let set = |result: io::Result<()>| result.map_err(|e| NetError::io("setting up a connection", &e, None));
    set(stream.set_nonblocking(false))?;
    set(stream.set_nodelay(true))?;
    set(stream.set_read_timeout(options.read))?;
    set(stream.set_write_timeout(options.write))?;
    let socket = Arc::new(Socket { stream, options: options.clone(), deadline: Mutex::new(None) });
    let sender = TcpSender {
        out: BufWriter::with_capacity(BUFFER, SocketWriter(Arc::clone(&socket))),
        encoder: FrameEncoder::new(DEFAULT_PAYLOAD_LIMIT),
        socket: Arc::clone(&socket),
        failed: None,
    };
    let receiver = TcpReceiver {
        input: BufReader::with_capacity(BUFFER, SocketReader { socket: Arc::clone(&socket), limited: false }),
        decoder: FrameDecoder::new(DEFAULT_PAYLOAD_LIMIT),
    };
    Ok(Channel { sender: Box::new(sender), receiver: Box::new(receiver), control: socket })
}

/// The stream that both halves and the control share; it is closed when the last of them goes.
struct Socket {
    stream: TcpStream,
    options: TcpOptions,
    deadline: Mutex<Option<Instant>>,
}

impl Socket {
    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for Socket {
    fn close(&self) {
        // An error here means that the stream is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn set_deadline(&self, deadline: Option<Instant>) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }
}

struct SocketReader {
    socket: Arc<Socket>,
    /// Whether the stream's own time limit is now a shorter one, set for a deadline.
    limited: bool,
}

impl Read for SocketReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let deadline = self.socket.deadline();
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let limit = self.socket.options.read.map_or(left, |read| read.min(left));
                self.socket.stream.set_read_timeout(Some(limit))?;
                self.limited = true;
            } else if self.limited {
                self.socket.stream.set_read_timeout(self.socket.options.read)?;
                self.limited = false;
            }
            match (&self.socket.stream).read(buffer) {
                // The deadline was changed while this read was waiting for it.
                Err(e) if is_timeout(&e) && deadline.is_some() && self.socket.deadline() != deadline => {}
                result => return result,
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

struct SocketWriter(Arc<Socket>);

impl Write for SocketWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct TcpSender {
    out: BufWriter<SocketWriter>,
    encoder: FrameEncoder,
    socket: Arc<Socket>,
    failed: Option<NetError>,
}

impl Sender for TcpSender {
    fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let limit = self.socket.options.write;
        let sent = self
            .encoder
            .write(&frame, &mut self.out)
            .and_then(|()| self.out.flush().map_err(|e| NetError::io("sending a frame", &e, limit)));
        sent.map_err(|e| self.fail(with_limit(e, limit)))
    }

    fn close(&mut self) {
        if self.failed.is_none() {
            self.failed = Some(NetError::closed("it was closed on this side"));
            let _ = self.socket.stream.shutdown(Shutdown::Write);
        }
    }
}

impl TcpSender {
    /// Keeps an error that broke the stream; a frame refused before its first byte did not.
    fn fail(&mut self, error: NetError) -> NetError {
        if !matches!(error, NetError::TooLong { .. }) {
            self.failed = Some(error.clone());
        }
        error
    }
}

impl Drop for TcpSender {
    fn drop(&mut self) {
        self.close();
    }
}

struct TcpReceiver {
    input: BufReader<SocketReader>,
    decoder: FrameDecoder,
}

impl Receiver for TcpReceiver {
    fn recv(&mut self) -> Result<Frame, NetError> {
        let limit = self.input.get_ref().socket.options.read;
        self.decoder.read(&mut self.input).map_err(|e| with_limit(e, limit))
    }

    fn set_payload_limit(&mut self, bytes: u64) {
        self.decoder.set_limit(bytes);
    }
}

/// Puts the channel's time limit into an error that was made where it is not known.
fn with_limit(error: NetError, limit: Option<Duration>) -> NetError {
    match error {
        NetError::Timeout { doing, .. } => NetError::Timeout { doing, limit: limit.unwrap_or_default() },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn pair(options: &TcpOptions) -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let a = connect(&address, options).unwrap();
        (a, tcp_channel(listener.accept().unwrap().0, options).unwrap())
    }

    fn frame(kind: u16, bytes: usize) -> Frame {
        Frame { lane: 1, kind, session: [5; 16], payload: vec![kind as u8; bytes] }
    }

    #[test]
    fn frames_of_all_lengths_cross_both_ways() {
        let (a, b) = pair(&TcpOptions::default());
        let sizes = [0, 1, 100, BUFFER - 53, BUFFER, 3_000_000];
        let play = |c: Channel| {
            let Channel { mut sender, mut receiver, .. } = c;
            let sending =
                thread::spawn(move || sizes.iter().enumerate().try_for_each(|(k, &n)| sender.send(frame(k as u16, n))));
            for (k, &n) in sizes.iter().enumerate() {
                assert_eq!(receiver.recv().unwrap(), frame(k as u16, n));
            }
            sending.join().unwrap().unwrap();
            assert!(matches!(receiver.recv(), Err(NetError::Closed { .. })));
        };
        thread::scope(|s| {
            s.spawn(|| play(a));
            s.spawn(|| play(b));
        });
    }

    #[test]
    fn a_deadline_ends_a_silent_wait_and_can_be_lifted() {
        let (mut a, mut b) = pair(&TcpOptions { read: None, ..TcpOptions::default() });
        a.control.set_deadline(Some(Instant::now() + Duration::from_secs(3600)));
        b.send(frame(1, 10)).unwrap();
        assert_eq!(a.recv().unwrap(), frame(1, 10));
        a.control.set_deadline(None);
        b.send(frame(2, 10)).unwrap();
        assert_eq!(a.recv().unwrap(), frame(2, 10));
        a.control.set_deadline(Some(Instant::now()));
        assert!(matches!(a.recv(), Err(NetError::Timeout { .. })));
    }

    #[test]
    fn a_silent_peer_is_a_timeout() {
        let read = Some(Duration::from_millis(20));
        let (mut a, _b) = pair(&TcpOptions { read, ..TcpOptions::default() });
        assert!(matches!(a.recv(), Err(NetError::Timeout { limit, .. }) if Some(limit) == read));
    }

    #[test]
    fn control_wakes_a_waiting_receiver() {
        let (a, _b) = pair(&TcpOptions::default());
        let Channel { mut receiver, control, .. } = a;
        let waiting = thread::spawn(move || receiver.recv());
        control.close();
        assert!(waiting.join().unwrap().is_err());
    }

    #[test]
    fn addresses_are_checked_with_a_sentence() {
        let options = TcpOptions::default();
        let failure = |address: &str| connect(address, &options).err().unwrap();
        assert!(matches!(failure("nonsense"), NetError::Address { .. }));
        assert!(matches!(failure("127.0.0.1"), NetError::Address { .. }));
        assert!(matches!(failure("192.0.2.1:7443"), NetError::NotLoopback { .. }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert_eq!(failure(&address), NetError::Refused { address });
        assert!(require_loopback("[::1]:1".parse().unwrap()).is_ok());
        assert!(require_loopback("[::ffff:127.0.0.1]:1".parse().unwrap()).is_ok());
        assert!(require_loopback("0.0.0.0:1".parse().unwrap()).is_err());
    }

    #[test]
    fn a_peer_that_vanishes_is_an_error_within_a_frame_and_between_two() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut raw = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut channel = tcp_channel(listener.accept().unwrap().0, &TcpOptions::default()).unwrap();
        let mut wire = Vec::new();
        let mut encoder = FrameEncoder::new(1000);
        encoder.write(&frame(1, 10), &mut wire).unwrap();
        encoder.write(&frame(2, 10), &mut wire).unwrap();
        raw.write_all(&wire[..wire.len() - 1]).unwrap();
        drop(raw);
        assert_eq!(channel.recv().unwrap(), frame(1, 10));
        assert_eq!(channel.recv(), Err(NetError::Truncated));
    }
}

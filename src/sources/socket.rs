//! A connection to a server that observes limits and cancellation: TCP, or a socket of this host.

use super::run::Deadline;
use crate::base::cancel::Cancel;
use crate::place::{InnerSocket, PlaceError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest wait between two looks at the limits.
const TICK: Duration = Duration::from_millis(100);
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What a connection observes.
#[derive(Clone)]
pub(crate) struct Limits {
    /// What is read, for messages.
    pub(crate) what: &'static str,
    /// The longest that may pass without a byte.
    pub(crate) stall: Duration,
    pub(crate) deadline: Deadline,
    pub(crate) cancel: Cancel,
}

pub(crate) struct Socket {
    stream: Stream,
    limits: Limits,
    /// For messages.
    peer: String,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn tcp(host: &str, port: u16, limits: Limits) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        for address in (host, port).to_socket_addrs()? {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            match connect(family, &address, &limits) {
                Ok(fd) => {
                    let stream = TcpStream::from(fd);
                    stream.set_read_timeout(Some(TICK))?;
                    stream.set_write_timeout(Some(CONNECT_LIMIT))?;
                    stream.set_nodelay(true)?;
                    // As libpq is told: what stands between forgets a connection that is silent for minutes.
                    net::sockopt::set_socket_keepalive(&stream, true)?;
                    net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(30))?;
                    net::sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
                    net::sockopt::set_tcp_keepcnt(&stream, 3)?;
                    return Ok(Self { stream: Stream::Tcp(stream), limits, peer: format!("{host}:{port}") });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A socket of a container, whose own process must answer.
    pub(crate) fn inside(socket: &InnerSocket, peer: String, limits: Limits) -> io::Result<Self> {
        let connected = Self::unix(&socket.path(), limits)?;
        match &connected.stream {
            Stream::Unix(stream) if socket.is_answered_inside(stream) => Ok(Self { peer, ..connected }),
            _ => Err(io::Error::other("somebody outside of the container answers")),
        }
    }

    pub(crate) fn unix(path: &Path, limits: Limits) -> io::Result<Self> {
        let stream = UnixStream::from(connect(AddressFamily::UNIX, &SocketAddrUnix::new(path)?, &limits)?);
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(CONNECT_LIMIT))?;
        Ok(Self { stream: Stream::Unix(stream), limits, peer: path.display().to_string() })
    }

    /// The longest that may pass without a byte, from here on.
    pub(crate) fn set_stall(&mut self, stall: Duration) {
        self.limits.stall = stall;
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Some bytes, waited for within the limits; 0 when the server has closed.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let begin = Instant::now();
        let limits = &self.limits;
        let (tool, place) = (|| limits.what.to_owned(), || self.peer.clone());
        loop {
            limits.cancel.check().map_err(|c| io::Error::other(PlaceError::Cancelled(c)))?;
            if limits.deadline.left() <= Duration::from_millis(1) {
                let error = PlaceError::TimedOut { tool: tool(), place: place(), limit: limits.deadline.limit() };
                return Err(io::Error::other(error));
            }
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(out),
                Stream::Unix(stream) => stream.read(out),
            };
            match read {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                other => return other,
            }
            if begin.elapsed() >= limits.stall {
                let error = PlaceError::Stalled { tool: tool(), place: place(), limit: limits.stall };
                return Err(io::Error::other(error));
            }
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }
}

/// Connects, and looks at the limits meanwhile. A socket of this host whose queue is full is an error at once.
fn connect(family: AddressFamily, address: &impl SocketAddrArg, limits: &Limits) -> io::Result<OwnedFd> {
    let (begin, limit) = (Instant::now(), CONNECT_LIMIT.min(limits.deadline.left()));
    let fd = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match net::connect(&fd, address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => loop {
            limits.cancel.check().map_err(|c| io::Error::other(PlaceError::Cancelled(c)))?;
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&tick)) {
                Ok(0) | Err(Errno::INTR) if begin.elapsed() >= limit => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break net::sockopt::socket_error(&fd)??,
                Err(error) => return Err(error.into()),
            }
        },
        Err(error) => return Err(error.into()),
    }
    rustix::io::ioctl_fionbio(&fd, false)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

    fn limits(cancel: &Cancel, within: Duration) -> Limits {
        Limits { what: "a test", stall: within, deadline: Deadline::after(within), cancel: cancel.clone() }
    }

    /// One that lets in nobody: whoever asks is not answered.
    fn full() -> (OwnedFd, u16, Vec<TcpStream>) {
        let fd = net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        net::bind(&fd, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        net::listen(&fd, 0).unwrap();
        let listener = TcpListener::from(fd.try_clone().unwrap());
        let address = listener.local_addr().unwrap();
        let ahead =
            (0..8).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()).collect();
        (fd, address.port(), ahead)
    }

    #[test]
    fn what_is_not_answered_is_cancelled_and_limited() {
        let (_listener, port, ahead) = full();
        assert!(ahead.len() < 8, "its queue is full");
        let cancel = Cancel::new();
        let begin = Instant::now();
        let error = Socket::tcp("127.0.0.1", port, limits(&cancel, Duration::from_secs(1))).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((1..6).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
        cancel.raise(2);
        let error = Socket::tcp("127.0.0.1", port, limits(&cancel, Duration::from_secs(60))).err().unwrap();
        assert!(matches!(PlaceError::from_io("", "", error), PlaceError::Cancelled(_)));
    }

    #[test]
    fn who_is_not_there_refuses_and_who_is_silent_stalls() {
        let cancel = Cancel::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut socket = Socket::tcp("127.0.0.1", port, limits(&cancel, Duration::from_secs(9))).unwrap();
        socket.set_stall(Duration::from_millis(300));
        let error = PlaceError::from_io("", "", socket.read(&mut [0; 9]).unwrap_err());
        assert!(matches!(error, PlaceError::Stalled { .. }), "{error}");
        drop(listener);
        let refused = Socket::tcp("127.0.0.1", port, limits(&cancel, Duration::from_secs(9))).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let dir = tempfile::tempdir().unwrap();
        let nowhere = Socket::unix(&dir.path().join("none"), limits(&cancel, Duration::from_secs(9))).err().unwrap();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }
}

//! `sd_notify`: one datagram to the socket that systemd names, as in sd_notify(3). Without systemd it does nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, where there is one.
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it must hear from us.
    pub watchdog: Option<Duration>,
    last_status: String,
}

impl Manager {
    /// As the environment says.
    pub fn find() -> Self {
        let text = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        let address = text("NOTIFY_SOCKET").and_then(|path| match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name.as_bytes()).ok(),
            None => SocketAddr::from_pathname(&path).ok(),
        });
        let socket = address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address)));
        let for_us = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let limit = text("WATCHDOG_USEC").and_then(|usec| usec.parse().ok()).filter(|_| for_us && socket.is_some());
        Self { socket, watchdog: limit.map(|usec| Duration::from_micros(usec) / 2), last_status: String::new() }
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(e) = socket.send_to_addr(text.as_bytes(), address)
        {
            tracing::debug!("systemd cannot be told: {e}");
        }
    }

    pub fn ready(&self) {
        self.send("READY=1");
    }

    pub fn reloading(&self) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// One line for `systemctl status`, when it has changed.
    pub fn status(&mut self, text: String) {
        if text != self.last_status {
            self.send(&format!("STATUS={}", text.replace('\n', " ")));
            self.last_status = text;
        }
    }
}

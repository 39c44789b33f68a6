//! A port of the loopback interface that is a test's own for as long as its process lives, although what listens there
//! is started later, by another program, or is stopped and started again in between.
//!
//! A port that the system chooses (`bind` to port 0) can be given away again until then, to a server or as the own end
//! of any connection. So these lie below the system's range (from 32768), and a test keeps a name of its own for each;
//! tests run as processes of one machine.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static NAMES: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

pub fn free_port() -> u16 {
    let begin = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
    let (before, after) = (FIRST..FIRST + begin as u16, FIRST + begin as u16..FIRST + COUNT);
    after.chain(before).find(|port| taken(*port)).expect("a port of the loopback interface is free")
}

/// Whether this port is ours now. An abstract name leaves nothing behind, however the process ends.
fn taken(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("lifeboat-test-port-{port}")).unwrap();
    let Ok(held) = UnixListener::bind_addr(&name) else { return false };
    let free = TcpListener::bind(("127.0.0.1", port)).is_ok();
    if free {
        NAMES.lock().unwrap_or_else(|e| e.into_inner()).push(held);
    }
    free
}

//! An SMTP server that takes mail and remembers it: STARTTLS, AUTH PLAIN, one connection at a time.

use crate::hear::server_config;
use base64::Engine;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// One mail.
#[derive(Debug, Clone, Default)]
pub struct Mail {
    pub tls: bool,
    /// `\0user\0password`.
    pub login: String,
    pub from: String,
    pub to: Vec<String>,
    pub data: String,
}

pub struct Sink {
    pub port: u16,
    mails: Arc<Mutex<Vec<Mail>>>,
}

impl Sink {
    /// With a certificate it offers STARTTLS, and insists on it.
    pub fn new(certificates: Option<(&Path, &str)>) -> Self {
        let tls = certificates.map(|(dir, domain)| server_config(dir, domain));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sink = Self { port: listener.local_addr().unwrap().port(), mails: Arc::default() };
        let mails = sink.mails.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away in the middle has sent no mail.
                let _ = greet(stream, tls.as_ref(), &mails);
            }
        });
        sink
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }
}

type Mails = Arc<Mutex<Vec<Mail>>>;

fn greet(mut stream: TcpStream, tls: Option<&Arc<rustls::ServerConfig>>, mails: &Mails) -> std::io::Result<()> {
    stream.write_all(b"220 sink ESMTP\r\n")?;
    let Some(config) = tls else { return talk(stream, false, mails) };
    // Nothing but STARTTLS is heard in the clear, one byte at a time so that nothing of TLS is read ahead.
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        match String::from_utf8_lossy(&line).trim_end() {
            "STARTTLS" => break,
            hello if hello.starts_with("EHLO") => stream.write_all(b"250-sink\r\n250 STARTTLS\r\n")?,
            _ => stream.write_all(b"530 Must issue a STARTTLS command first\r\n")?,
        }
    }
    stream.write_all(b"220 go ahead\r\n")?;
    let connection = rustls::ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
    talk(rustls::StreamOwned::new(connection, stream), true, mails)
}

fn talk(stream: impl Read + Write, tls: bool, mails: &Mails) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut mail = Mail { tls, ..Mail::default() };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        let answer = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => "250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN",
            "AUTH" => {
                let login = base64::engine::general_purpose::STANDARD.decode(line.rsplit(' ').next().unwrap()).unwrap();
                mail.login = String::from_utf8(login).unwrap();
                if mail.login.contains("wrong") { "535 5.7.8 no" } else { "235 2.7.0 yes" }
            }
            "MAIL" => {
                line["MAIL FROM:".len()..].clone_into(&mut mail.from);
                "250 ok"
            }
            "RCPT" => {
                mail.to.push(line["RCPT TO:".len()..].to_owned());
                "250 ok"
            }
            "DATA" => {
                stream.get_mut().write_all(b"354 go on\r\n")?;
                stream.get_mut().flush()?;
                while !mail.data.ends_with("\r\n.\r\n") {
                    stream.read_line(&mut mail.data)?;
                }
                mails.lock().unwrap().push(mail.clone());
                "250 ok"
            }
            "QUIT" => {
                stream.get_mut().write_all(b"221 bye\r\n")?;
                return stream.get_mut().flush();
            }
            _ => "250 ok",
        };
        stream.get_mut().write_all(format!("{answer}\r\n").as_bytes())?;
        stream.get_mut().flush()?;
    }
}

//! By mail: `smtp://user:password@host:587` with STARTTLS, `smtps://host:465` with TLS from the beginning. A password is
//! never sent without TLS; without one, TLS is used where the server offers it.

use super::event::Event;
use lettre::message::{Mailbox, header::ContentType};
use lettre::{Message, SmtpTransport, Transport};
use std::error::Error;
use std::time::Duration;

/// Sends it to everybody in one message.
pub fn send(url: &str, from: &str, to: &[String], event: &Event, limit: Duration) -> Result<(), String> {
    let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|e| format!("{text:?} is no address: {e}"));
    let mut message = Message::builder().from(mailbox(from)?).subject(event.title.clone());
    for address in to {
        message = message.to(mailbox(address)?);
    }
    let message = message.header(ContentType::TEXT_PLAIN).header(AutoSubmitted).body(event.text.clone());
    let message = message.map_err(|e| format!("the message cannot be written: {e}"))?;
    transport(url, limit)?.send(&message).map(drop).map_err(|e| reason(&e))
}

fn transport(url: &str, limit: Duration) -> Result<SmtpTransport, String> {
    let has_password = url.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
    let tls = if has_password { "required" } else { "opportunistic" };
    let url = match url.split_once("://") {
        Some(("smtp", _)) if !url.contains('?') => format!("{url}?tls={tls}"),
        Some(("smtp", _)) if has_password && !url.contains("tls=required") => {
            return Err("its address would send the password without TLS".to_owned());
        }
        Some(("smtp" | "smtps", _)) => url.to_owned(),
        _ => return Err("its address is no URL of smtp or smtps".to_owned()),
    };
    // What is wrong with a URL that may hold a password is not said.
    let builder = SmtpTransport::from_url(&url).map_err(|_| "its address cannot be read".to_owned())?;
    Ok(builder.timeout(Some(limit)).build())
}

fn reason(error: &lettre::transport::smtp::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = inner.source();
    }
    text
}

/// RFC 3834: no absence note answers this.
#[derive(Clone)]
struct AutoSubmitted;

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

//! One message to one channel, once, within a limit of time.
//!
//! Invariant: an error says what went wrong and never where: an address may be a secret.

use super::event::{Event, Occasion};
use super::smtp;
use crate::base::secret::Secret;
use crate::base::threads;
use crate::ops::health::agent;
use crate::policy::Policy;
use crate::policy::model::{NotifyChannel, NotifyTarget};
use crate::sources::secret;
use serde_json::json;
use std::thread::JoinHandle;
use std::time::Duration;

/// Discord refuses more.
const DISCORD_CHARS: usize = 1900;
/// A ping that says that a run begins is worth no longer wait.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// The address, read.
fn address(field: &str, target: &NotifyTarget) -> Result<Secret<String>, String> {
    match target {
        NotifyTarget::Plain(url) => Ok(Secret::new(url.clone())),
        NotifyTarget::Secret(reference) => {
            let url = secret::resolve_as(field, reference).map_err(|e| e.to_string())?;
            Ok(Secret::new(url.expose().trim().to_owned()))
        }
    }
}

/// Sends it.
pub fn send(channel: &NotifyChannel, event: &Event, limit: Duration) -> Result<(), String> {
    let body = |value: serde_json::Value| ("application/json", value.to_string());
    let whole = || format!("{}\n{}", event.title, event.text);
    let (target, field, (kind, body)) = match channel {
        NotifyChannel::Webhook(target) => {
            (target, "webhook", body(serde_json::to_value(event).map_err(|e| e.to_string())?))
        }
        NotifyChannel::Ntfy(target) => (target, "ntfy", ("text/plain; charset=utf-8", event.text.clone())),
        NotifyChannel::Slack(target) => (target, "slack", body(json!({ "text": slack_text(event) }))),
        NotifyChannel::Discord(target) => {
            let text: String = whole().chars().take(DISCORD_CHARS).collect();
            // Nobody is called by what stands in an error.
            (target, "discord", body(json!({ "content": text, "allowed_mentions": { "parse": [] } })))
        }
        NotifyChannel::Healthchecks(target) => (target, "healthchecks", ("text/plain; charset=utf-8", whole())),
        NotifyChannel::Email { to, from, smtp } => {
            return smtp::send(address("smtp", smtp)?.expose(), from, to, event, limit);
        }
    };
    let url = address(field, target)?;
    let url = match channel {
        NotifyChannel::Healthchecks(_) => Secret::new(ping_url(url.expose(), ping_of(event))),
        _ => url,
    };
    let headers = if field == "ntfy" { ntfy_headers(event) } else { Vec::new() };
    post(url.expose(), kind, &headers, &body, limit)
}

fn ping_of(event: &Event) -> &'static str {
    match (event.event, event.well) {
        // A test says that it was a test, and changes nothing there.
        (Occasion::Test, _) => "/log",
        (_, true) => "",
        (_, false) => "/fail",
    }
}

/// The URL with a further part of its path.
fn ping_url(url: &str, part: &str) -> String {
    let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{part}{query}", path.trim_end_matches('/'))
}

fn ntfy_headers(event: &Event) -> Vec<(&'static str, String)> {
    let (priority, tag) = if event.well { ("default", "white_check_mark") } else { ("high", "rotating_light") };
    // Names of hosts and policies are ASCII, so the title is.
    vec![("Title", event.title.clone()), ("Priority", priority.to_owned()), ("Tags", tag.to_owned())]
}

fn slack_text(event: &Event) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("*{}*\n{}", escape(&event.title), escape(&event.text))
}

fn post(url: &str, kind: &str, headers: &[(&str, String)], body: &str, limit: Duration) -> Result<(), String> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err("its address is no URL of http or https".to_owned());
    }
    let mut request = agent(limit)?.post(url).header("Content-Type", kind);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    match request.send(body) {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("it answers {}", answer.status().as_u16())),
        Err(e) => Err(reason(e)),
    }
}

/// What went wrong, without what was asked for.
fn reason(error: ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "it does not answer in time".to_owned(),
        ureq::Error::HostNotFound => "no such host".to_owned(),
        ureq::Error::ConnectionFailed => "it cannot be connected to".to_owned(),
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::Rustls(e) => format!("TLS: {e}"),
        ureq::Error::Tls(e) => format!("TLS: {e}"),
        ureq::Error::Protocol(_) => "what it answers is not HTTP".to_owned(),
        _ => "it cannot be asked".to_owned(),
    }
}

/// Tells the watchdogs of a policy that a snapshot begins, beside it. Whoever ends the run waits for this first: a
/// beginning that arrives after its end would be taken for a run that hangs.
pub fn begin_ping(policy: &Policy) -> Option<JoinHandle<()>> {
    let watchdogs: Vec<NotifyTarget> = policy
        .notify
        .iter()
        .filter_map(|notify| match &notify.channel {
            NotifyChannel::Healthchecks(target) => Some(target.clone()),
            _ => None,
        })
        .collect();
    if watchdogs.is_empty() {
        return None;
    }
    let ping = move || {
        for target in watchdogs {
            let sent = address("healthchecks", &target).and_then(|url| {
                post(&ping_url(url.expose(), "/start"), "text/plain; charset=utf-8", &[], "", PING_LIMIT)
            });
            if let Err(problem) = sent {
                tracing::warn!("healthchecks was not told that the run begins: {problem}");
            }
        }
    };
    threads::begin(ping).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_goes_below_the_path_and_before_the_query() {
        assert_eq!(ping_url("https://hc.example.org/uuid", "/fail"), "https://hc.example.org/uuid/fail");
        assert_eq!(ping_url("https://hc.example.org/uuid/", "/start"), "https://hc.example.org/uuid/start");
        assert_eq!(ping_url("https://hc.example.org/uuid?a=b/", ""), "https://hc.example.org/uuid?a=b/");
    }

    #[test]
    fn an_error_never_names_the_address() {
        let limit = Duration::from_secs(1);
        for url in ["http://127.0.0.1:1/t0ken", "http://t0ken.invalid/t0ken", "https://[t0ken", "ftp://t0ken/"] {
            let error = post(url, "text/plain", &[], "x", limit).unwrap_err();
            assert!(!error.contains("t0ken") && !error.is_empty(), "{error}");
        }
    }
}

//! An answer over HTTP: its status, and what stands in its JSON. Redirects are answers of their own.

use super::tls;
use serde_json::Value;
use std::cmp::Reverse;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// No health answer is larger.
const BODY_BYTES: u64 = 1 << 20;

/// Asks once.
pub fn check(url: &str, status: u16, json: &[(String, String)], timeout: Duration) -> Result<(), String> {
    let agent = agent(timeout)?;
    let mut answer = agent.get(url).call().map_err(|e| e.to_string())?;
    let got = answer.status().as_u16();
    if got != status {
        return Err(format!("it answers {got}, not {status}"));
    }
    if json.is_empty() {
        return Ok(());
    }
    let text = answer.body_mut().with_config().limit(BODY_BYTES).read_to_string();
    let text = text.map_err(|e| format!("its answer cannot be read: {e}"))?;
    let body: Value = serde_json::from_str(&text).map_err(|e| format!("its answer is not JSON: {e}"))?;
    compare(&body, json)
}

/// Follows no redirect, uses no proxy, believes this machine's authorities; one limit of time for all.
pub fn agent(timeout: Duration) -> Result<Agent, String> {
    let roots = tls::roots();
    let roots = roots.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect::<Vec<_>>();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(tls::provider())
        .build();
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
        .proxy(None)
        .tls_config(tls)
        .build();
    Ok(config.into())
}

/// What the answer must say: dotted paths, and texts.
fn compare(body: &Value, json: &[(String, String)]) -> Result<(), String> {
    for (path, wanted) in json {
        let found = find(body, path);
        let text = match found {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => return Err(format!("its answer has no {path:?}")),
        };
        if text != *wanted {
            return Err(format!("its answer says {path} = {text:?}, not {wanted:?}"));
        }
    }
    Ok(())
}

/// A key that itself holds dots is found before its parts are, and of two that fit the shorter one is followed first.
fn find<'v>(body: &'v Value, path: &str) -> Option<&'v Value> {
    match body {
        Value::Object(fields) => fields.get(path).or_else(|| {
            // By the keys that are there: by the dots of a path, each look would take the path's length.
            let below =
                |(key, value): (&String, &'v Value)| Some((path.strip_prefix(key.as_str())?.strip_prefix('.')?, value));
            let mut fitting: Vec<(&str, &Value)> = fields.iter().filter_map(below).collect();
            fitting.sort_by_key(|(rest, _)| Reverse(rest.len()));
            fitting.into_iter().find_map(|(rest, value)| find(value, rest))
        }),
        Value::Array(items) => match path.split_once('.') {
            Some((index, rest)) => find(items.get(index.parse::<usize>().ok()?)?, rest),
            None => items.get(path.parse::<usize>().ok()?),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_answers_to_a_health_check() {
        let seed = "checks.list.0.x\n{\"checks\":{\"list\":[{\"x\":\"ok\"}],\"a.b\":true}}";
        let words = [".", "..", "0", "18446744073709551616", "\n", "[", "{", "\"a\":", "\"a.a\":", "é"];
        let dots = format!("a{}\n{{\"a\":{{\"b\":1,\"c\":2}},\"d\":3}}", ".".repeat(100_000));
        crate::base::fuzz::Fuzz::of("health").seed(seed).seed(dots.as_str()).words(&words).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (path, body) = text.split_once('\n').unwrap_or((&text, "null"));
            if let Ok(body) = serde_json::from_str::<Value>(body) {
                let _ = compare(&body, &[(path.to_owned(), "ok".to_owned())]);
            }
        });
    }

    #[test]
    fn answers_are_compared_by_dotted_paths() {
        let body: Value =
            serde_json::json!({"status": "ok", "checks": {"db": "ok", "n": 3, "a.b": true}, "list": [{"x": null}]});
        let wanted = |path: &str, text: &str| compare(&body, &[(path.to_owned(), text.to_owned())]);
        for (path, text) in [("status", "ok"), ("checks.db", "ok"), ("checks.n", "3"), ("checks.a.b", "true")] {
            wanted(path, text).unwrap();
        }
        wanted("list.0.x", "null").unwrap();
        wanted("list.0", "{\"x\":null}").unwrap();
        assert!(wanted("list.1", "null").unwrap_err().contains("no \"list.1\""));
        // The shorter of two keys leads nowhere here.
        let body = serde_json::json!({"a": {"b": 1}, "a.b": {"c": "ok"}});
        compare(&body, &[("a.b.c".to_owned(), "ok".to_owned())]).unwrap();
        assert!(wanted("status", "fine").unwrap_err().contains("\"ok\", not \"fine\""));
        assert!(wanted("checks.cache", "ok").unwrap_err().contains("no \"checks.cache\""));
    }
}

//! An answer over HTTP: its status, and what stands in its JSON. Redirects are answers of their own.

use super::tls;
use serde_json::Value;
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

/// A key that itself holds dots is found before its parts are.
fn find<'v>(body: &'v Value, path: &str) -> Option<&'v Value> {
    if let Some(value) = body.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(at, _)| {
        let below = match body {
            Value::Array(items) => items.get(path[..at].parse::<usize>().ok()?)?,
            other => other.get(&path[..at])?,
        };
        find(below, &path[at + 1..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_answers_to_a_health_check() {
        let seed = "checks.list.0.x\n{\"checks\":{\"list\":[{\"x\":\"ok\"}],\"a.b\":true}}";
        let words = [".", "..", "0", "18446744073709551616", "\n", "[", "{", "\"a\":", "\"a.a\":", "é"];
        crate::base::fuzz::Fuzz::of("health").seed(seed).words(&words).run(|bytes| {
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
        assert!(wanted("status", "fine").unwrap_err().contains("\"ok\", not \"fine\""));
        assert!(wanted("checks.cache", "ok").unwrap_err().contains("no \"checks.cache\""));
    }
}
